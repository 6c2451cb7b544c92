"""Referrer: what kind of place a visit came from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.enrich import referrers
from millrace.transforms.enrich.enrichment import Enrichment, declared
from millrace.transforms.enrich.urls import Own, domain_of

# What of the page's address tells whether the referrer is of the same site: all before its path.
_SITE = r"^(?P<site>[^/?#]*//[^/?#]*)"


@dataclasses.dataclass(frozen=True)
class Referrer(Enrichment):
    """Class `context_page_referrer`.

    In:      any batch.  Out: the columns of schemas/added/referrer.avsc; all null where there is no referrer.
    State:   none but a bounded cache.  Repeats: same referrer and page, same columns, for the versions in `lineage`.
    Errors:  none

    Args:
        own_hosts: hosts of one's own, in lower case, each with all below it: class `internal`. The page's own site is
            so without being named.
    """

    name = "referrer"
    adds = declared("referrer")

    own_hosts: tuple[str, ...] = ()

    def open(self) -> None:
        """Read the lists, once a process."""
        referrers.referrers()
        domain_of("example.com")

    def keys(self, batch: pa.RecordBatch) -> Sequence[pa.Array]:
        """Return the referrer, and the site of the page."""
        encoded = pc.dictionary_encode(batch.column("context_page_url"))
        sites = pc.struct_field(pc.extract_regex(encoded.dictionary, _SITE), "site")
        return [batch.column("context_page_referrer"), sites.take(encoded.indices)]

    def look_up(self, *values: Any) -> Sequence[Any]:
        """See referrers.classify."""
        referrer, page_url = values
        return referrers.classify(referrer, page_url, Own(frozenset(self.own_hosts)))

    def versions(self) -> Mapping[str, str]:
        """Name the list's version."""
        return referrers.version()
