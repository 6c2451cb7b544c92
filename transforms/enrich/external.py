"""External referrers: those of another site than the page that they led to."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.transforms.batches import codes


def external_hosts(referrers: pa.StringArray, pages: pa.StringArray, internal: Collection[str]) -> pa.StringArray:
    """Return the hosts of the referrers that are external, without `www.`; null for the others.

    A referrer is internal where its host is that of the page or one of `internal`, or one of the two is a subdomain of
    the other. Without a page (an app) it is external.

    Args:
        referrers: URLs, some null.
        pages: URLs, some null, of the pages that they led to.
        internal: hosts, lower case.
    """
    size = len(referrers)
    present = pc.not_equal(referrers, "").fill_null(False)
    rows = np.flatnonzero(present.to_numpy(zero_copy_only=False))
    if not len(rows):
        return pa.nulls(size, pa.string())
    take = pa.array(rows)
    referrer, of_referrers = _hosts(referrers.take(take))
    page, of_pages = _hosts(pages.take(take))
    pairs, pair = np.unique(referrer * len(of_pages) + page, return_inverse=True)
    own = tuple(host.removeprefix("www.") for host in internal)
    hosts: list[str | None] = []
    for number in pairs.tolist():
        host, on = of_referrers[number // len(of_pages)], of_pages[number % len(of_pages)]
        is_external = host and not any(_is_of(host, each) for each in own) and not _is_one_site(host, on)
        hosts.append(host if is_external else None)
    of_row = np.full(size, -1)
    of_row[rows] = pair
    return pa.array(hosts, pa.string()).take(pa.array(of_row, mask=of_row < 0))


def _hosts(urls: pa.StringArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return each URL's host by number, and the hosts; the empty text where there is none."""
    number, distinct = codes(urls.fill_null(""))
    parts = pc.split_pattern(distinct, "/", max_splits=3)
    starts = parts.offsets.to_numpy()[:-1]
    has_host = np.diff(parts.offsets.to_numpy()) > 2
    second = parts.values.take(pa.array(np.where(has_host, starts + 1, 0), mask=~has_host))
    has_host &= pc.equal(second, "").fill_null(False).to_numpy(zero_copy_only=False)
    third = pa.array(np.where(has_host, starts + 2, 0), mask=~has_host)
    of_url, raw = codes(parts.values.take(third).fill_null(""))
    hosts = [_host(text) for text in raw.to_pylist()]
    names = list(dict.fromkeys(hosts))
    place = {name: position for position, name in enumerate(names)}
    return np.array([place[host] for host in hosts], np.int64)[of_url][number], names


def _host(authority: str) -> str:
    """Return the host of what stands between `//` and the next `/`.

    >>> _host("user:pass@WWW.Shop.example:8080?x=1")
    'shop.example'
    """
    host = authority.partition("?")[0].partition("#")[0].rpartition("@")[2].lower()
    if host.startswith("["):  # an IPv6 address
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".").removeprefix("www.")


def _is_one_site(one: str, other: str) -> bool:
    return bool(other) and (_is_of(one, other) or _is_of(other, one))


def _is_of(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain}")
