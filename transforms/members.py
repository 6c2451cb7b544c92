"""Members: objects that are not quite as the wire format lists them, taken apart: what it lists, and the rest."""

import msgspec

from millrace.schemas import wire

Fields = dict[str, msgspec.Raw]
"""The members of a JSON object, by key, unread."""

KINDS: dict[str, type[msgspec.Struct]] = {"": wire.Event, "context": wire.Context}
"""What is listed, by the path of the object; the empty path is the event."""
KINDS |= {f"context.{name}": kind for name, kind in wire.CONTEXT_OBJECTS.items()}

COLUMNS = {path: frozenset(wire.keys(kind, columns=True).values()) for path, kind in KINDS.items()}
KNOWN = {path: COLUMNS[path] | set(wire.keys(kind, columns=False).values()) for path, kind in KINDS.items()}

_INNER = {"context": tuple(wire.CONTEXT_OBJECTS)}
_STRICT = {path: msgspec.json.Decoder(kind).decode for path, kind in KINDS.items()}
_NUMBER_STARTS = frozenset(b"%c" % character for character in b"-0123456789")

encode = msgspec.json.Encoder().encode
read_members = msgspec.json.Decoder(Fields).decode


def split_members(fields: Fields, path: str) -> Fields:
    """Leave in fields, the members of the object at `path`, what the wire format lists; return the rest.

    Numbers become text where that is allowed. Only objects that are not as listed are taken apart. Of an inner one
    that has unknown members, those without a column go to the rest with them, or its name would stand there twice.

    Raises:
        msgspec.ValidationError: what should be an object is none; names the path.
    """
    rest = {key: fields.pop(key) for key in list(fields) if key not in KNOWN[path]}
    for key in wire.NUMBERS_AS_TEXT.get(path, ()):
        if key in fields and bytes(fields[key])[:1] in _NUMBER_STARTS:
            fields[key] = msgspec.Raw(b'"%b"' % fields[key])
    for key in _INNER.get(path, ()):
        if key not in fields:
            continue
        inner = f"{path}.{key}"
        try:
            _STRICT[inner](fields[key])
            continue
        except msgspec.ValidationError:
            if is_empty(fields[key]):
                del fields[key]
                continue
        members = members_of(fields[key], inner)
        members_rest = split_members(members, inner)
        if members_rest:
            members_rest |= {name: members.pop(name) for name in list(members) if name not in COLUMNS[inner]}
            rest[key] = msgspec.Raw(encode(members_rest))
        fields[key] = msgspec.Raw(encode(members))
    return rest


def members_of(value: msgspec.Raw | bytes, path: str) -> Fields:
    """Return an object's members.

    Raises:
        msgspec.ValidationError: it is no object; names the path.
    """
    try:
        return read_members(value)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.{path}`") from error


def merge_contexts(default: msgspec.Raw | bytes, own: msgspec.Raw | bytes) -> bytes:
    """Return a batch's context with that of an event over it, key by key.

    Raises:
        msgspec.ValidationError: one of them is no object.
    """
    both: list[Fields] = [{} if is_empty(value) else members_of(value, "context") for value in (default, own)]
    return encode(both[0] | both[1])


def is_empty(value: msgspec.Raw | bytes) -> bool:
    """Say whether a value counts as absent: null, and an empty array, which is how PHP sends an empty object."""
    text = bytes(value)
    return text == b"null" or (text.startswith(b"[") and not text[1:-1].strip())
