"""`enrich:` of `millrace.yaml`: which enrichments run, in which order, how set; docs/config.md describes it."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from millrace.config.yaml_page import Page, line_of, meant, shown
from millrace.transforms.enrich.bots import SIGNALS, Bots
from millrace.transforms.enrich.campaign import Campaign
from millrace.transforms.enrich.geo import Geo
from millrace.transforms.enrich.locale import Locale
from millrace.transforms.enrich.mmdb import MmdbError, open_files
from millrace.transforms.enrich.referrer import Referrer
from millrace.transforms.enrich.url import Url
from millrace.transforms.enrich.user_agent import UserAgent
from millrace.transforms.steps import Step

Settings = Mapping[str, yaml.Node]

AFTER: Mapping[str, tuple[str, str]] = {
    "bots": ("geo", "judges networks by geo's asn_number"),
    "campaign": ("referrer", "needs referrer's class"),
}
"""Which one has to come behind which other, where both are there, and why."""

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ASN = re.compile(r"(?:AS)?([0-9]{1,10})\b.*", re.IGNORECASE)
_MOST_ASN = 2**32 - 1


def read_enrich(page: Page, node: yaml.Node) -> tuple[Step, ...]:
    """Read the section: a list of names, or of one name with its settings; mistakes are noted on the page."""
    steps: list[Step] = []
    places: dict[str, yaml.Node] = {}
    for item in page.items(node, "enrich"):
        name, settings = _named(page, item)
        if name is None:
            continue
        if name in places:
            page.wrong(item, f"enrich: {name} is there already, at line {line_of(places[name])}; keep one")
            continue
        places[name] = item
        read, known = ENRICHMENTS[name]
        if settings is not None and not known:
            page.wrong(settings, f"enrich: {name} has no settings; write `- {name}`")
            settings = None
        given = page.members(settings, f"enrich: {name}", known) if settings is not None else {}
        step = read(page, item, given)
        if step is not None:
            steps.append(step)
    if "geo" not in places and any(isinstance(step, Bots) and step.hosting_asns for step in steps):
        page.wrong(
            places["bots"], "enrich: bots: hosting networks are told by geo; list it before bots, or remove them"
        )
    order = list(places)
    for name, (before, why) in AFTER.items():
        if name in places and before in places and order.index(before) > order.index(name):
            page.wrong(places[name], f"enrich: {name} {why}, so it has to come behind {before}; move it there")
    return tuple(steps)


def _named(page: Page, item: yaml.Node) -> tuple[str | None, yaml.Node | None]:
    """Return an item's name, None where it is none, and its settings."""
    settings: yaml.Node | None = None
    name = item
    if isinstance(item, yaml.MappingNode):
        if len(item.value) != 1:
            page.wrong(item, "enrich: one enrichment an item; begin each with a - of its own")
            return None, None
        name, settings = item.value[0]
        if isinstance(settings, yaml.ScalarNode) and not settings.value:
            settings = None  # `- url:`
    if not isinstance(name, yaml.ScalarNode):
        page.wrong(name, f"enrich: an item has to be a name, or `name: settings`, not {shown(name)}")
        return None, None
    if name.value not in ENRICHMENTS:
        page.wrong(name, f"enrich: there is no enrichment {shown(name)}; {meant(name.value, ENRICHMENTS)}")
        return None, None
    return name.value, settings


def _bots(page: Page, _item: yaml.Node, of: Settings) -> Step | None:
    where = "enrich: bots"
    ignored = [
        page.choice(each, f"{where}: ignore", SIGNALS) for each in page.items(of.get("ignore"), f"{where}: ignore")
    ]
    asns: list[int] = []
    for each in page.items(of.get("hosting_asns"), f"{where}: hosting_asns"):
        number = page.whole(each, f"{where}: hosting_asns", _MOST_ASN)
        if number is not None:
            asns.append(number)
    if "hosting_file" in of:
        asns += _asns(page, of["hosting_file"], f"{where}: hosting_file")
    return Bots(tuple(name for name in SIGNALS if name not in ignored), tuple(sorted(set(asns))))


def _asns(page: Page, node: yaml.Node, where: str) -> Sequence[int]:
    """Read a file with one autonomous system a line: its number, with or without AS, before anything else."""
    path = page.text(node, where)
    if path is None:
        return ()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        page.wrong(node, f"{where}: {path} cannot be read ({_why(error)}); put the file there, or correct the path")
        return ()
    found = [_ASN.match(line.strip().strip('"')) for line in lines]
    numbers = [int(match[1]) for match in found if match]
    if not numbers:
        page.wrong(node, f"{where}: {path} has no line that begins with a number such as AS16509; put some in")
    return numbers


def _geo(page: Page, item: yaml.Node, of: Settings) -> Step | None:
    where = "enrich: geo"
    paths = []
    for name in ("file", "asn_file"):
        path = page.text(of.get(name), f"{where}: {name}")
        if path is None:
            continue
        try:
            open_files([path])
        except MmdbError as error:
            page.wrong(of[name], f"{where}: {name}: {error}; put an MMDB file there, or correct the path")
        paths.append(path)
    if not paths and not {"file", "asn_file"} & set(of):
        page.wrong(item, f"{where}: file is missing; write `- geo: {{file: /path/to/GeoLite2-City.mmdb}}`")
    postal = page.choice(of.get("postal"), f"{where}: postal", ("true", "false"))
    return Geo(tuple(paths), postal == "true") if paths else None


def _referrer(page: Page, _item: yaml.Node, of: Settings) -> Step | None:
    return Referrer(tuple(read_hosts(page, of.get("own_hosts"), "enrich: referrer: own_hosts")))


def read_hosts(page: Page, node: yaml.Node | None, where: str) -> list[str]:
    """Read a list of names of hosts, in small letters."""
    hosts = []
    for each in page.items(node, where):
        host = page.text(each, where)
        if host is None:
            continue
        if not _HOST.fullmatch(host.lower()):
            page.wrong(
                each, f"{where}: {shown(each)} is no host; write one such as shop.example, without https:// or path"
            )
        hosts.append(host.lower())
    return hosts


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


Build = Callable[[Page, yaml.Node, Settings], Step | None]

ENRICHMENTS: dict[str, tuple[Build, Sequence[str]]] = {
    "user_agent": (lambda *_: UserAgent(), ()),
    "url": (lambda *_: Url(), ()),
    "referrer": (_referrer, ("own_hosts",)),
    "campaign": (lambda *_: Campaign(), ()),
    "locale": (lambda *_: Locale(), ()),
    "geo": (_geo, ("file", "asn_file", "postal")),
    "bots": (_bots, ("hosting_asns", "hosting_file", "ignore")),
}
"""By name: what reads its settings, and which there are."""
