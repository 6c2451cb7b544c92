"""JSON paths: single values inside JSON texts are replaced; all else of the text stays, byte for byte where it can.

An array on the way stands for each of its elements, whether the path says so or not. Of a key that stands twice only
the last is left, as it is the one that counts.
"""

from collections.abc import Iterable, Sequence

import msgspec

from millrace.transforms.policies import ProtectJson

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_PLAIN_ESCAPE = b"\\u00"
"""How a plain ASCII key may be spelled in another way: only with this in it."""


class Tree:
    """The places in a text at which something is done."""

    __slots__ = ("act", "children", "each", "escape", "quoted")

    def __init__(self, key: str = "") -> None:
        self.act: ProtectJson | None = None
        self.each: ProtectJson | None = None
        """For the elements, where the value is an array; else for the value itself."""
        self.children: dict[str, Tree] = {}
        self.quoted = _encode(key)
        self.escape = _PLAIN_ESCAPE if key.isascii() and key.isprintable() and not set(key) & set('"\\/') else b"\\"
        """A text without it has the key only as it is quoted here."""

    def add(self, keys: Sequence[str], act: ProtectJson, *, each: bool = False, whole: bool = True) -> None:
        """Do something at a path, unless an earlier path takes it.

        Args:
            keys: from the outermost; none: the text itself.
            act: what to do.
            each: with the elements of an array there.
            whole: what is inside goes with it, and needs nothing of its own; else what is there already stays.
        """
        node = self
        for key in keys:
            if node.act is not None:
                return
            node = node.children.setdefault(key, Tree(key))
        if node.act is not None or (each and node.each is not None):
            return
        if each:
            node.each = act
        elif whole or not (node.children or node.each):
            node.act = act
            node.children.clear()

    def last_keys(self) -> Iterable["Tree"]:
        """Give the places at which something is done, below this one."""
        for child in self.children.values():
            if child.act is not None or child.each is not None:
                yield child
            yield from child.last_keys()


def rewrite(text: bytes, tree: Tree) -> bytes | None:
    """Do what a tree says to a JSON text; None: nothing is left of it.

    Raises:
        msgspec.DecodeError, RecursionError: it is no JSON.
    """
    if tree.act is not None:
        return tree.act(text)
    begins = text[:1]
    if begins == b"[":
        return _rewrite_array(text, tree)
    if tree.each is not None:
        return tree.each(text)
    return _rewrite_object(text, tree) if begins == b"{" and tree.children else text


def _rewrite_array(text: bytes, tree: Tree) -> bytes:
    old = [bytes(each) for each in _elements(text)]
    left = [rewrite(each, tree) for each in old]
    return text if left == old else b"[%b]" % b",".join(each for each in left if each is not None)


def _rewrite_object(text: bytes, tree: Tree) -> bytes:
    unclear = []
    for key, child in tree.children.items():
        left = _rewritten_at_once(text, child)
        if left is None:
            unclear.append((key, child))
        else:
            text = left
    if not unclear:
        return text
    members = _members(text)
    for key, child in unclear:
        value = members.get(key)
        if value is None:
            continue
        old = bytes(value)
        new = rewrite(old, child)
        if new is None:
            del members[key]
        else:
            members[key] = msgspec.Raw(new)
        is_there_once = text.count(child.quoted) == 1 and child.escape not in text
        if not (is_there_once and new == old):
            spliced = _splice(text, child.quoted, old, new) if is_there_once else None
            text = _encode(members) if spliced is None else spliced
    return text


def _rewritten_at_once(text: bytes, child: Tree) -> bytes | None:
    """Do it to a member that is not there, or a plain text that is found without parsing; None: this takes more care.

    Without a backslash in the text a quote begins or ends a string. So a key that stands once, before which no object
    or array opens, is a member's of the outermost object.
    """
    if b"\\" in text:
        return None
    at = text.find(child.quoted)
    if at < 0:
        return text
    colon = at + len(child.quoted)
    if child.act is None or text.find(child.quoted, colon) >= 0 or text[colon : colon + 2] != b':"':
        return None
    if text.find(b"{", 1, at) >= 0 or text.find(b"[", 1, at) >= 0:
        return None
    end = text.find(b'"', colon + 2) + 1
    if not end:
        return None
    old = text[colon + 1 : end]
    new = child.act(old)
    if new is None:
        return _splice(text, child.quoted, old, None)
    return text if new == old else b"%b%b%b" % (text[: colon + 1], new, text[end:])


def _splice(text: bytes, quoted: bytes, old: bytes, new: bytes | None) -> bytes | None:
    """Put a value in the place of another, whose key stands once in the text; None where it is not found at once."""
    found = b"%b:%b" % (quoted, old)
    if found not in text:
        found = b"%b: %b" % (quoted, old)  # as Python writes it
        if found not in text:
            return None
    if new is not None:
        return text.replace(found, found[: -len(old)] + new)
    for whole in (b", " + found, b"," + found, found + b", ", found + b","):
        if whole in text:
            return text.replace(whole, b"")
    return None
