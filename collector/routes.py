"""Routes: which path means what. The paths are Segment's and RudderStack's."""

import enum
from typing import NamedTuple

from millrace.schemas.event import TYPES


class Action(enum.Enum):
    """What a route is for."""

    EVENTS = "events"  # POST: events in the body
    PIXEL = "pixel"  # GET: one event in the query, an image for an answer
    SOURCE_CONFIG = "source_config"  # GET: what RudderStack's SDKs ask before they send
    PROJECT_SETTINGS = "project_settings"  # GET: what Segment's SDKs ask before they send


class Route(NamedTuple):
    """One route."""

    name: str
    """For metrics: the path, with a parameter's name for its value; one of a closed set."""
    action: Action
    event_type: str | None = None
    """The type of the events that name none."""
    key: str | None = None
    """The write key, where the path holds it."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that it takes."""
        return ("POST", "OPTIONS") if self.action is Action.EVENTS else ("GET", "HEAD", "OPTIONS")

    @property
    def allow(self) -> str:
        """What Allow tells of them."""
        return ", ".join(self.methods)


_BATCHES = ("/v1/batch", "/v1/b", "/v1/import", "/beacon/v1/batch")
_SETTINGS_PREFIX, _SETTINGS_END = "/v1/projects/", "/settings"
_SETTINGS_NAME = "/v1/projects/{key}/settings"

ROUTES: dict[str, Route] = {path: Route(path, Action.EVENTS) for path in _BATCHES}
ROUTES |= {f"/v1/{kind}": Route(f"/v1/{kind}", Action.EVENTS, kind) for kind in TYPES}
ROUTES |= {
    f"/v1/{kind[0]}": Route(f"/v1/{kind[0]}", Action.EVENTS, kind) for kind in TYPES
}  # analytics.js sends to these
ROUTES |= {
    f"/pixel/v1/{kind}": Route(f"/pixel/v1/{kind}", Action.PIXEL, kind) for kind in ("track", "page")
}  # RudderStack's
ROUTES |= {f"/v1/pixel/{kind}": Route(f"/v1/pixel/{kind}", Action.PIXEL, kind) for kind in TYPES}  # Segment's
ROUTES["/sourceConfig"] = Route("/sourceConfig", Action.SOURCE_CONFIG)
"""By path; the one with a parameter is found by find_route."""

NAMES = (*ROUTES, _SETTINGS_NAME)
"""Every route's name."""


def find_route(path: str) -> Route | None:
    """Return the route of a path; slashes too many, in the middle or at the end, mean nothing.

    >>> find_route("//v1/t/").event_type, find_route("/v1/projects/abc/settings").key, find_route("/v2/t")
    ('track', 'abc', None)
    """
    route = ROUTES.get(path)
    if route is not None:
        return route
    path = "/" + "/".join(part for part in path.split("/") if part)
    if path.startswith(_SETTINGS_PREFIX) and path.endswith(_SETTINGS_END) and path.count("/") == 4:
        return Route(_SETTINGS_NAME, Action.PROJECT_SETTINGS, key=path[len(_SETTINGS_PREFIX) : -len(_SETTINGS_END)])
    return ROUTES.get(path)
