"""A source: who may send events with one pair of write keys, and what becomes of them."""

import dataclasses

from millrace.collector.client_ip import IpPolicy
from millrace.collector.keys import Kind, StoredKey
from millrace.collector.origins import Origins
from millrace.schemas.event import TYPES

EVERY_TYPE = frozenset(TYPES)


@dataclasses.dataclass(frozen=True, slots=True)
class SourceLimits:
    """A source's own limits; None: the collector's. The smaller of the two counts."""

    event_bytes: int | None = None
    """Of one event's JSON; a larger one is refused."""
    request_bytes: int | None = None
    """Of one request's body, as it came and unpacked."""
    request_events: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One source of millrace.yaml."""

    id: str
    """Goes with every event: the archive's `source_id`."""
    name: str
    """For people."""
    kind: Kind
    keys: tuple[StoredKey, ...] = ()
    """One, or two while one takes the other's place."""
    origins: Origins = Origins()  # noqa: RUF009  it cannot change
    rate: float | None = None
    """Events per second over all workers; None: no limit."""
    burst: float = 0.0
    """Events that may come at once after a pause, over all workers."""
    limits: SourceLimits = SourceLimits()
    ip_policy: IpPolicy = IpPolicy.TRUNCATE
    allowed_types: frozenset[str] = EVERY_TYPE

    @property
    def key_is_public(self) -> bool:
        """Whether the key may stand in a URL, and whether the routes that SDKs ask for their settings know it."""
        return self.kind is not Kind.SERVER

    def allows_origin(self, origin: str | None) -> bool:
        """Say whether a request with this Origin header (None: without) may use the source.

        Without one it may: images (the pixel) and whatever is no browser send none, and only browsers can be held to
        it. With one only a browser source may be used, from its origins: any other key does not belong in a page.
        """
        return origin is None or (self.kind is Kind.BROWSER and self.origins.allow(origin))
