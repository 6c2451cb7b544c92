"""Since when a lane without order asks the routes that it asks now: for `millrace verify`."""

import msgspec

from millrace.delivery.ledger import Ledger
from millrace.delivery.settings import LaneSettings

_ROUTES = "live: routes"
NEVER_US = 1 << 62


def note_routes(ledger: Ledger, settings: LaneSettings, now_us: int) -> None:
    """Note that a lane asks its routes from now on, unless it did before. Call it once its subscription gives messages.

    What was published before the subscription was there is not the lane's.
    """
    if routes_since_us(ledger, settings) == NEVER_US:
        ledger.put(_ROUTES, msgspec.json.encode((settings.digest, now_us)))


def routes_since_us(ledger: Ledger, settings: LaneSettings) -> int:
    """Return since when a lane asks the routes that it has in these settings, µs since the epoch; or NEVER_US."""
    told = ledger.get(_ROUTES)
    if told is not None:
        digest, since_us = msgspec.json.decode(told, type=tuple[str, int])
        if digest == settings.digest:
            return since_us
    return NEVER_US
