"""Consent: which categories a user has denied, as the SDKs send it, and whom that blocks."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.config.privacy import CONSENT_DENIED

_REMEMBERED = 4_096
_encode = msgspec.json.Encoder().encode


class _Context(msgspec.Struct, gc=False):
    rudder: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="consentManagement")
    segment: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="consent")


_context = msgspec.json.Decoder(_Context).decode
_value = msgspec.json.Decoder().decode
_list = msgspec.json.Decoder(list[Any]).decode


def denied(context_rest: pa.Array) -> pa.Array:
    """Return, for each row, the categories that its user has denied, as a JSON list; null where it says nothing.

    RudderStack: `context.consentManagement.deniedConsentIds`, a list (or an object, whose values are the ids).
    Segment: `context.consent.categoryPreferences`, by category; what is not `true` is denied. Where an event has both,
    what either denies.

    Args:
        context_rest: the column of that name.
    """
    speaks = pc.fill_null(pc.match_substring(context_rest, "onsent"), False)
    odd = pc.fill_null(pc.match_substring(context_rest, "\\u00"), False)  # a key may be spelled with escapes
    mask = pc.or_(speaks, odd)
    if not pc.any(mask).as_py():
        return pa.nulls(len(context_rest), pa.string())
    told = [_told(text) for text in context_rest.filter(mask).cast(pa.binary()).to_pylist()]
    return pc.replace_with_mask(pa.nulls(len(context_rest), pa.string()), mask, pa.array(told, pa.string()))


def blocked(
    batch: pa.RecordBatch, required: Iterable[str], strategy: str = "and", *, silent: bool = False
) -> npt.NDArray[np.bool_]:
    """Say which rows may not go where some categories are required.

    Args:
        batch: has a column consent_denied.
        required: the categories; with none, no row is blocked.
        strategy: `and`: all are needed, so one that is denied blocks; `or`: one is enough, so only all of them do.
        silent: what of rows that say nothing of consent.
    """
    needed = frozenset(required)
    if not needed:
        return np.zeros(batch.num_rows, np.bool_)
    encoded = pc.dictionary_encode(batch.column(CONSENT_DENIED.name))
    verdicts = [_blocks(frozenset(_list(text)), needed, strategy) for text in encoded.dictionary.to_pylist()]
    rows = pa.array([*verdicts, silent], pa.bool_()).take(pc.fill_null(encoded.indices, len(verdicts)))
    mask: npt.NDArray[np.bool_] = rows.to_numpy(zero_copy_only=False)
    return mask


def _blocks(refused: frozenset[str], needed: frozenset[str], strategy: str) -> bool:
    return needed <= refused if strategy == "or" else not needed.isdisjoint(refused)


def _told(context_rest: bytes) -> str | None:
    try:
        context = _context(context_rest)
        return _denied_by(bytes(context.rudder), bytes(context.segment))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


@functools.lru_cache(_REMEMBERED)
def _denied_by(rudder: bytes, segment: bytes) -> str | None:
    """Return the categories that two texts deny; a form that neither SDK sends says nothing."""
    found = [each for each in (_of_rudder(rudder), _of_segment(segment)) if each is not None]
    return _encode(sorted({str(name).strip() for each in found for name in each})).decode() if found else None


def _of_rudder(text: bytes) -> list[Any] | None:
    consent = _value(text) if text else None
    if not isinstance(consent, dict) or not {"deniedConsentIds", "allowedConsentIds"} & set(consent):
        return None
    ids = consent.get("deniedConsentIds")
    values: Sequence[Any] = list(ids.values()) if isinstance(ids, dict) else ids if isinstance(ids, list) else []
    return [each for each in values if type(each) in (str, int)]


def _of_segment(text: bytes) -> list[Any] | None:
    consent = _value(text) if text else None
    choices = consent.get("categoryPreferences") if isinstance(consent, dict) else None
    return [name for name, given in choices.items() if given is not True] if isinstance(choices, dict) else None
