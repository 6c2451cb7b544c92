"""What a contract needs to know of `context_rest`: the version that an event names, and an identify's traits."""

import msgspec


class _Protocols(msgspec.Struct):
    event_version: str | int | float | msgspec.UnsetType = msgspec.UNSET


class _HasProtocols(msgspec.Struct):
    protocols: _Protocols = msgspec.field(default_factory=_Protocols)


class _HasTraits(msgspec.Struct):
    traits: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


_read_protocols = msgspec.json.Decoder(_HasProtocols).decode
_read_traits = msgspec.json.Decoder(_HasTraits).decode
_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def named_version(context_rest: str) -> str | None:
    """Return the version of its contract that an event names, as text.

    >>> named_version('{"protocols": {"event_version": 2}}')
    '2'
    """
    try:
        version = _read_protocols(context_rest).protocols.event_version
    except (msgspec.MsgspecError, RecursionError):  # the key stands elsewhere, or is no version
        return None
    return None if version is msgspec.UNSET else str(version)


def traits_in(context_rest: str | None) -> bytes | None:
    """Return `context.traits`, where RudderStack's SDKs put those of an identify; None where it is no object.

    >>> traits_in('{"traits": {"plan": "pro"}}')
    b'{"plan": "pro"}'
    """
    traits = bytes(_read_traits(context_rest).traits) if context_rest else b""
    return traits if traits.startswith(b"{") else None


def with_traits(context_rest: str, traits: bytes) -> bytes:
    """Return the text with other traits.

    >>> with_traits('{"traits": {"plan": 1}, "screen": {}}', b'{"plan": null}')
    b'{"traits":{"plan": null},"screen":{}}'
    """
    return msgspec.json.encode(_read_members(context_rest) | {"traits": msgspec.Raw(traits)})
