"""`enrich:`: what it says becomes steps in its order; every mistake has its line and what to do."""

import re
from pathlib import Path

import pytest

from millrace.collector.check import main as check
from millrace.config.enrich import ENRICHMENTS
from millrace.config.job import ConfigError, JobConfig, read_job
from millrace.transforms.enrich.bots import SIGNALS, Bots
from millrace.transforms.enrich.campaign import Campaign
from millrace.transforms.enrich.geo import Geo
from millrace.transforms.enrich.lineage import Lineage
from millrace.transforms.enrich.locale import Locale
from millrace.transforms.enrich.referrer import Referrer
from millrace.transforms.enrich.url import Url
from millrace.transforms.enrich.user_agent import UserAgent

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parents[1] / "transforms" / "enrich" / "data"
NO_FILE = "No such file or directory"
README = DATA / "README.md"
CITY, ASN = str(DATA / "GeoLite2-City-Test.mmdb"), str(DATA / "GeoLite2-ASN-Test.mmdb")


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_job(text, "m.yaml")
    return str(caught.value).splitlines()


def test_all_of_it(tmp_path: Path):
    asns = tmp_path / "asns.csv"
    asns.write_text('ASN,name\nAS16509,Amazon\n"14061","DigitalOcean"\n# nobody\n24940\n')
    config = read_job(
        f"""
enrich:
  - locale
  - user_agent:
  - url
  - geo: {{file: {CITY}, asn_file: {ASN}, postal: true}}
  - bots: {{hosting_asns: [1, 24940], hosting_file: {asns}, ignore: [webdriver, headless]}}
  - referrer: {{own_hosts: [Shop.example, localhost]}}
  - campaign
""",
        "m.yaml",
    )
    steps = (
        Locale(),
        UserAgent(),
        Url(),
        Geo((CITY, ASN), postal=True),
        Bots(SIGNALS[:4] + SIGNALS[5:6], (1, 14061, 16509, 24940)),
        Referrer(("shop.example", "localhost")),
        Campaign(),
    )
    found, lineage = list(config.enrich), config.lineage
    assert tuple(found) == steps
    assert isinstance(lineage, Lineage)
    assert lineage.steps == steps
    assert config.added == tuple(field for step in config.steps for field in step.adds)


def test_without_the_section_there_is_nothing_to_do():
    assert read_job("sources: {}", "m.yaml") == read_job("", "m.yaml") == JobConfig()


def test_the_hash_of_a_configuration_hangs_on_what_it_says():
    def hashed(text: str) -> str:
        lineage = read_job(text, "m.yaml").lineage
        assert isinstance(lineage, Lineage)
        return lineage.hash

    one = hashed("enrich: [url, {referrer: {own_hosts: [a.b, c.d]}}]")
    assert hashed("sources: {}\nenrich: # why\n- 'url'\n- referrer:\n    own_hosts: [\"a.b\", c.d]\n") == one
    assert hashed("enrich: [{referrer: {own_hosts: [a.b, c.d]}}, url]") != one
    assert hashed("enrich: [url, {referrer: {own_hosts: [c.d, a.b]}}]") != one


@pytest.mark.parametrize(
    ("item", "mistake"),
    [
        ("campain", "there is no enrichment 'campain'; did you mean campaign?"),
        ("xyz", f"there is no enrichment 'xyz'; there are: {', '.join(ENRICHMENTS)}"),
        ("url", "url is there already, at line 2; keep one"),
        ("{locale: {zone: UTC}}", "locale has no settings; write `- locale`"),
        ("{referrer: {own_host: [a]}}", "referrer: 'own_host' is not known here; did you mean own_hosts?"),
        ("{referrer: {own_hosts: a}}", "referrer: own_hosts: has to be a list, such as [one, two], not 'a'"),
        (
            "{referrer: {own_hosts: ['https://a/']}}",
            "referrer: own_hosts: 'https://a/' is no host; write one such as shop.example, without https:// or path",
        ),
        ("geo", "geo: file is missing; write `- geo: {file: /path/to/GeoLite2-City.mmdb}`"),
        (
            "{geo: {file: /no.mmdb}}",
            f"geo: file: /no.mmdb cannot be read: {NO_FILE}; put an MMDB file there, or correct the path",
        ),
        (
            f"{{geo: {{file: {__file__}}}}}",
            f"geo: file: {__file__} is no MMDB file; put an MMDB file there, or correct the path",
        ),
        (
            f"{{geo: {{file: {CITY}, asn_file: /no}}}}",
            f"geo: asn_file: /no cannot be read: {NO_FILE}; put an MMDB file there, or correct the path",
        ),
        ("{geo: {file: [a]}}", "geo: file: has to be a text; put a list in quotes if it is meant so"),
        (
            f"{{geo: {{file: {CITY}, postal: yes}}}}",
            "geo: postal: 'yes' is not one of its values; there are: true, false",
        ),
        ("{bots: {ignore: [webdrive]}}", "bots: ignore: 'webdrive' is not one of its values; did you mean webdriver?"),
        (
            "{bots: {hosting_asns: [AS1]}}",
            "bots: hosting_asns: has to be a whole number from 1 to 4,294,967,295, not 'AS1'",
        ),
        (
            "{bots: {hosting_file: /no}}",
            f"bots: hosting_file: /no cannot be read ({NO_FILE}); put the file there, or correct the path",
        ),
        (
            f"{{bots: {{hosting_file: {README}}}}}",
            f"bots: hosting_file: {README} has no line that begins with a number such as AS16509; put some in",
        ),
        (
            "{bots: {hosting_asns: [16509]}}",
            "bots: hosting networks are told by geo; list it before bots, or remove them",
        ),
        ("{a: 1, b: 2}", "one enrichment an item; begin each with a - of its own"),
        ("[url]", "an item has to be a name, or `name: settings`, not a list"),
        ("{[a]: 1}", "an item has to be a name, or `name: settings`, not a list"),
    ],
)
def test_each_mistake_has_its_line_and_what_to_do(item: str, mistake: str):
    assert mistakes(f"enrich:\n- url\n- {item}\n") == [f"m.yaml:3: enrich: {mistake}"]


def test_all_mistakes_are_told_at_once_and_the_wrong_order_among_them():
    assert mistakes(f"enrich:\n- bots\n- campaign\n- geo: {{file: {CITY}}}\n- referrer\n- nonsense\n") == [
        "m.yaml:2: enrich: bots judges networks by geo's asn_number, so it has to come behind geo; move it there",
        "m.yaml:3: enrich: campaign needs referrer's class, so it has to come behind referrer; move it there",
        f"m.yaml:6: enrich: there is no enrichment 'nonsense'; there are: {', '.join(ENRICHMENTS)}",
    ]


def test_the_document_and_the_example_tell_of_every_enrichment_setting_and_signal():
    document = (ROOT / "docs" / "config.md").read_text(encoding="utf-8").split("\n## enrich\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| (?:`(\w+)`)? ?\| (?:`(\w+)`)? ?\|", document, re.MULTILINE)
    settings = {name: settings for name, (_, settings) in ENRICHMENTS.items()}
    assert [name for name, _ in listed if name in settings] == list(settings)
    assert [setting for _, setting in listed if setting] == [name for names in settings.values() for name in names]
    assert [name for name in re.findall(r"^\| `(\w+)` \|", document, re.MULTILINE) if name in SIGNALS] == list(SIGNALS)
    shown = (ROOT / "examples" / "job.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"^ +(?:# )?- (\w+)", shown, re.MULTILINE)) == set(ENRICHMENTS)
    assert [step.name for step in read_job(shown, "job.yaml").enrich] == [name for name in settings if name != "geo"]


@pytest.mark.parametrize("section", ["url", "{url: 1}"])
def test_the_section_has_to_be_a_list(section: str):
    (mistake,) = mistakes(f"enrich: {section}")
    assert mistake.startswith("m.yaml:1: enrich: has to be a list, such as [one, two], not ")


def test_millrace_check_finds_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "millrace.yaml"
    key = f"{{begins: mrs_c70P, sha256: {'0a' * 32}}}"
    file.write_text(f"sources: {{shop: {{kind: server, keys: [{key}]}}}}\nenrich:\n- geo: {{file: /no.mmdb}}\n")
    assert check([str(file)]) == 2
    assert capsys.readouterr().out == (
        f"{file}:3: enrich: geo: file: /no.mmdb cannot be read: No such file or directory; put an MMDB file there, or "
        "correct the path\n"
    )
