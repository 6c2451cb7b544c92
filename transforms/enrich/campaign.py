"""Campaign: which campaign brought a visit, which click, and through which channel."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.enrich import referrers
from millrace.transforms.enrich.distinct import Memo
from millrace.transforms.enrich.enrichment import Enrichment, declared
from millrace.transforms.enrich.urls import parameters
from millrace.transforms.steps import Applied, Users, with_columns

UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content", "utm_id")

CLICK_IDS: Mapping[str, str] = {
    "gclid": "google",
    "wbraid": "google",
    "gbraid": "google",
    "dclid": "google_display",
    "msclkid": "microsoft",
    "fbclid": "facebook",
    "ttclid": "tiktok",
    "twclid": "x",
    "li_fat_id": "linkedin",
    "sccid": "snapchat",
    "epik": "pinterest",
    "rdt_cid": "reddit",
    "yclid": "yandex",
    "irclickid": "impact",
}
"""Parameters by which ad networks know a click, in lower case, and whose they are; the first one found counts."""

_PAID_SEARCH = frozenset({"google", "microsoft", "yandex"})
_PAID_SOCIAL = frozenset({"tiktok", "x", "linkedin", "snapchat", "pinterest", "reddit"})
# Facebook puts its id on every link that leaves it, paid or not.

_TELLS = re.compile("|".join(["utm_", *CLICK_IDS]), re.IGNORECASE)
_PAID = re.compile(r"(?:.*cp[cmva].*|ppc|retargeting|remarketing|paid.*)")
_DISPLAY = frozenset({"display", "banner", "expandable", "interstitial", "cpm"})
_EMAIL = re.compile(r"e[-_ ]?mail|newsletter")
_MEDIUMS: Mapping[str, str] = {
    "sms": "sms",
    "push": "push",
    "webpush": "push",
    "notification": "push",
    "affiliate": "affiliate",
    "affiliates": "affiliate",
    "social": "social",
    "social-network": "social",
    "social-media": "social",
    "sm": "social",
    "organic": "search",
    "referral": "referral",
    "link": "referral",
    "ai": "ai",
}
_CLASSES: Mapping[str, str] = {
    "search": "search",
    "social": "social",
    "email": "email",
    "ai": "ai",
    "paid": "paid_other",
    "internal": "internal",
    "other": "referral",
}


def campaign_of(address: str | None) -> tuple[str | None, ...]:
    """Return the values of UTM, the click's id and its network, of an address, or of its part from the `?` on.

    >>> campaign_of("?utm_source=news&utm_medium=email&gclid=Cj0")
    ('news', 'email', None, None, None, None, 'Cj0', 'google')
    """
    if not address or not _TELLS.search(address):
        return (None,) * (len(UTM) + 2)
    given = {name.lower(): value for name, value in reversed(parameters(_query(address)).items())}
    click = next((name for name in CLICK_IDS if name in given), None)
    network = (given[click], CLICK_IDS[click]) if click else (None, None)
    return (*(given.get(name) for name in UTM), *network)


def _query(address: str) -> str:
    before, found, query = address.partition("#")[0].partition("?")
    return query if found else before  # an SDK may leave out the question mark of `search`


def channel_of(
    source: str | None, medium: str | None, network: str | None, referrer_class: str | None, *, has_page: bool
) -> str | None:
    """Return the channel, by the first rule that holds; docs/config.md lists them.

    >>> channel_of("google", "cpc", None, None, has_page=True)
    'paid_search'
    """
    medium = (medium or "").strip().lower()
    kind = referrers.kind_of_source(source) if source else None
    if medium in _DISPLAY or network == "google_display":
        return "display"
    if _PAID.fullmatch(medium) or network in _PAID_SEARCH | _PAID_SOCIAL:
        if network in _PAID_SEARCH or kind == "search":
            return "paid_search"
        return "paid_social" if network in _PAID_SOCIAL or kind == "social" or network == "facebook" else "paid_other"
    if _EMAIL.fullmatch(medium) or kind == "email" or _EMAIL.fullmatch((source or "").strip().lower()):
        return "email"
    if medium in _MEDIUMS:
        return _MEDIUMS[medium]
    if kind:
        return _CLASSES[kind]
    if network == "facebook":
        return "social"
    if source or medium:
        return "other"
    if referrer_class:
        return _CLASSES.get(referrer_class)
    return "direct" if has_page else None


@dataclasses.dataclass(frozen=True)
class Campaign(Enrichment):
    """Read `context.campaign`, else the page's address; and the click's id.

    In:      any batch; `referrer_class`, of the step referrer before it, for the channels of visits without a campaign
    Out:     the columns of schemas/added/campaign.avsc
    State:   none but a bounded cache.  Repeats: same row, same columns, for the versions in `lineage`.
    Errors:  none
    """

    name = "campaign"
    adds = declared("campaign")

    def open(self) -> None:
        """Read the list of referrers, once a process."""
        referrers.referrers()

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See campaign_of."""
        return campaign_of(*values)

    def apply(self, batch: pa.RecordBatch, users: Users) -> Applied:  # noqa: ARG002
        """Append the columns."""
        search, url = batch.column("context_page_search"), batch.column("context_page_url")
        has_search = pc.fill_null(pc.greater(pc.binary_length(search), 0), fill_value=False)
        address = pc.if_else(has_search, search, url)
        *utm, click_id, network = _addresses(self).columns([address])
        told = [batch.column(f"context_campaign_{name}") for name in ("source", "medium", "name", "term", "content")]
        utm = [*_preferred(told, utm[:5]), utm[5]]
        page = pc.is_valid(url)
        classes = pa.nulls(batch.num_rows, pa.string())
        if "referrer_class" in batch.schema.names:
            classes = batch.column("referrer_class")
        channel = _channels().columns([utm[0], utm[1], network, classes, page])
        return Applied(with_columns(batch, self.adds, [*utm, click_id, network, *channel]))

    def versions(self) -> Mapping[str, str]:
        """Name the list's version."""
        return referrers.version()


def _preferred(told: Sequence[pa.Array], found: Sequence[pa.Array]) -> list[pa.Array]:
    """Return what `context.campaign` tells, of the rows that have one, else what was found."""
    if all(column.null_count == len(column) for column in told):
        return list(found)
    has = functools.reduce(pc.or_, [column.is_valid() for column in told])
    return [pc.if_else(has, ours, theirs) for ours, theirs in zip(told, found, strict=True)]


@functools.cache
def _addresses(step: Campaign) -> Memo:
    return Memo(step.name, step.look_up, step.adds[:-1])


@functools.cache
def _channels() -> Memo:
    return Memo("campaign", _channel, Campaign.adds[-1:])


def _channel(*values: Any) -> Sequence[Any]:
    *told, has_page = values
    return (channel_of(*told, has_page=has_page),)
