"""Check: what JSON texts hold that some reader or warehouse cannot, where msgspec took them unread."""

import math
import re
from typing import Any

import msgspec

from millrace.schemas.dead_letter import Reason, Rejected

MAX_DEPTH = 64
"""Levels of objects and arrays in one event. Readers of JSON give up at some depth, each at another."""

_any = msgspec.json.Decoder().decode

# The largest double has 309 digits before the point.
_LONG = 309
_ZEROS = b"0" * _LONG
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_INTEGER = re.compile(rb"(?<![0-9.])[0-9]{309,}(?![0-9.eE])")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_FORBIDDEN = re.compile(_PAIR + rb"|(\\u0000|\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)


def check_text(text: bytes) -> None:
    """Refuse a JSON text that is broken, or that holds what some reader or warehouse cannot.

    Raises:
        Rejected: NOT_UTF8, NOT_JSON, TOO_DEEP, FORBIDDEN_CHARACTER, NUMBER_OUT_OF_RANGE.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Reason.NOT_UTF8, str(error)) from error
    if b"\x00" in text or (b"\\" in text and any(found[1] for found in _FORBIDDEN.finditer(text))):
        raise Rejected(Reason.FORBIDDEN_CHARACTER, "NUL, or half of a surrogate pair")
    check_value(text, MAX_DEPTH)


def check_value(text: bytes, levels: int) -> Any:
    """Do what is left of check_text for a text that is UTF-8 without forbidden characters; return its value.

    Raises:
        Rejected: NOT_JSON, TOO_DEEP, NUMBER_OUT_OF_RANGE.
    """
    try:
        value = _any(text)
    except msgspec.ValidationError as error:  # the only thing that can be invalid where anything is allowed
        raise Rejected(Reason.NUMBER_OUT_OF_RANGE, str(error)) from error
    except RecursionError as error:
        raise Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected(Reason.NOT_JSON, str(error)) from error
    if len(text) <= 2 * levels:  # too short to be deep: each level opens and closes
        return value
    if text.count(b"{") + text.count(b"[") > levels and _is_deeper(value, levels):
        raise Rejected(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")
    if len(text) >= _LONG and _ZEROS in text.translate(_DIGITS_AS_ZEROS):  # msgspec takes integers of any length
        for number in _LONG_INTEGER.finditer(_STRING.sub(b'""', text)):
            if math.isinf(float(number[0])):
                raise Rejected(Reason.NUMBER_OUT_OF_RANGE, f"an integer of {len(number[0])} digits")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    parents = [value]
    for _ in range(levels):
        parents = [
            child
            for parent in parents
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not parents:
            return False
    return True
