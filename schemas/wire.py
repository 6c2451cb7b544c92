"""The wire format: events as Segment's and RudderStack's SDKs send them, as msgspec types.

A field is either a column of the archive (typed here: msgspec's own error names the field that is wrong) or
one that many SDKs send and that has no column (`Json`: its text is kept verbatim in `rest` or `context_rest`).
Fields that are not listed here are kept as well, on a slower path (transforms/rescue.py): listing one buys speed only.
"""

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    Json = msgspec.Raw | None
else:
    Json = msgspec.Raw  # msgspec ignores Raw in a union: absent is the default, `null` arrives as the text `null`

Type = Literal["identify", "track", "page", "screen", "group", "alias"]


class Page(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """context.page: where in the web site it happened."""

    url: str | None = None
    path: str | None = None
    referrer: str | None = None
    search: str | None = None
    title: str | None = None
    tab_url: Json = None
    referring_domain: Json = None
    initial_referrer: Json = None
    initial_referring_domain: Json = None


class Campaign(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """context.campaign: the UTM parameters."""

    name: str | None = None
    source: str | None = None
    medium: str | None = None
    term: str | None = None
    content: str | None = None
    id: Json = None


class Library(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """context.library: the SDK."""

    name: str | None = None
    version: str | None = None
    snippet_version: Json = msgspec.field(default=None, name="snippetVersion")


class Device(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """context.device: the phone or tablet."""

    id: str | None = None
    type: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    name: str | None = None
    advertising_id: Json = None
    ad_tracking_enabled: Json = None
    attribution_id: Json = None
    tracking_status: Json = None
    token: Json = None


class Os(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """context.os: the operating system."""

    name: str | None = None
    version: str | None = None


class App(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """context.app: the mobile application."""

    name: str | None = None
    version: str | None = None
    build: str | None = None
    namespace: str | None = None


class Context(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """context: the circumstances, filled in by the SDK."""

    page: Page | None = None
    campaign: Campaign | None = None
    library: Library | None = None
    device: Device | None = None
    os: Os | None = None
    app: App | None = None
    locale: str | None = None
    timezone: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    active: Json = None
    consent: Json = None
    consent_management: Json = None
    external_id: Json = None
    external_ids: Json = None
    group_id: Json = None
    instance_id: Json = None
    location: Json = None
    network: Json = None
    protocols: Json = None
    referrer: Json = None
    screen: Json = None
    session_id: Json = None
    session_start: Json = None
    traits: Json = None
    user_agent_data: Json = None


class Event(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """One event."""

    type: Type
    message_id: str | None = None
    event: str | None = None
    name: str | None = None
    user_id: str | None = None
    anonymous_id: str | None = None
    original_timestamp: str | None = None
    timestamp: str | None = None
    sent_at: str | None = None
    received_at: str | None = None
    context: Json = None
    """A Context, read apart (transforms/contexts.py): many events have the same."""
    properties: Json = None
    traits: Json = None
    category: Json = None
    channel: Json = None
    group_id: Json = None
    integrations: Json = None
    metadata: Json = msgspec.field(default=None, name="_metadata")
    previous_id: Json = None
    project_id: Json = None
    rudder_id: Json = None
    version: Json = None
    write_key: Json = None


class Batch(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The body of `POST /v1/batch`, in the form that most SDKs send; others take the slower path."""

    batch: list[Event]
    sent_at: str | None = None
    write_key: Json = None
    integrations: Json = None
    context: Json = None


CONTEXT_OBJECTS: dict[str, type[msgspec.Struct]] = {
    "page": Page,
    "campaign": Campaign,
    "library": Library,
    "device": Device,
    "os": Os,
    "app": App,
}

NUMBERS_AS_TEXT: dict[str, tuple[str, ...]] = {
    "": ("userId", "anonymousId", "messageId", "originalTimestamp", "timestamp", "sentAt", "receivedAt"),
    "context.library": ("version",),
    "context.device": ("id", "model"),
    "context.os": ("version",),
    "context.app": ("version", "build"),
}
"""Where a number is taken as its text, by object: SDKs and hand-written senders send numeric ids, versions, epochs."""


def keys(kind: type[msgspec.Struct], *, columns: bool) -> dict[str, str]:
    """Return {attribute: wire key} of the fields of `kind` that are columns, or of those that are kept as text.

    >>> keys(Os, columns=True)
    {'name': 'name', 'version': 'version'}
    """
    return {
        field.name: field.encode_name
        for field in msgspec.structs.fields(kind)
        if (field.type is not msgspec.Raw) is columns
    }
