"""One event: what the job would make of it, as far as can be told without its past and without asking anybody."""

import dataclasses
import time
from collections.abc import Sequence

import pyarrow as pa

from millrace.config.job import JobConfig
from millrace.pipelines.options import EventOptions
from millrace.schemas.envelope import SOURCE_ID, Envelope
from millrace.transforms import copies
from millrace.transforms.custom.step import CustomStep
from millrace.transforms.decode import decode_envelopes
from millrace.transforms.fingerprint import fingerprints
from millrace.transforms.order import order, release
from millrace.transforms.protection import Protection
from millrace.transforms.steps import CannotOpenError, Step, Users, run_step, with_columns
from millrace.transforms.validation import validate


@dataclasses.dataclass
class Seen:
    """What became of the events of one body."""

    raw: pa.RecordBatch
    """As routes without order have them."""
    ordered: pa.RecordBatch
    """As they are archived; fewer, or more, than before where a step leaves events out, or splits them."""
    gone: list[str]
    """Of each event that does not get so far: a sentence on what becomes of it."""
    unknown: dict[str, str]
    """Columns of `ordered` that cannot be told, and why."""


def see(body: bytes, source: str, config: JobConfig, options: EventOptions) -> Seen:
    """Do to a body what the job does, as if it came in now, in time, from users that nobody knows yet.

    Args:
        body: what an SDK sends: an event, or a batch of some.
        source: the source's name; empty: none.
        config: the job's.
        options: the job's.

    Raises:
        SecretError, SuppressionError: what the privacy settings name cannot be had.
    """
    now_us = time.time_ns() // 1_000
    envelope = Envelope(body, {SOURCE_ID: source} if source else {}, "explained", now_us, now_us)
    batch, letters, _, _ = decode_envelopes([envelope], now_us)
    gone = [f"An event goes nowhere: dead letter ({each['reason']}): {each['message']}" for each in letters.to_pylist()]
    if config.privacy is not None:
        protected = Protection(config.privacy).protect(batch, now_us)
        batch = protected.batch
        rules = [rule for part in protected.dropped for rule in part["rule"].to_pylist()]
        gone += [f"An event goes nowhere: left out by privacy: {rule}" for rule in rules]
    if config.contracts is not None:
        validated = validate(batch, config.contracts)
        batch = validated.batch
        gone += [
            f"An event goes nowhere: dead letter ({each.reason.value}): {each.message}" for each in validated.refused
        ]
    if not batch.num_rows:
        return Seen(batch, batch, gone, {})
    first = with_columns(batch, copies.ADDS, [fingerprints(batch).view("int64"), pa.nulls(batch.num_rows, pa.string())])
    wait_us, window_us = (round(each * 1_000_000) for each in (options.order_wait_s, options.order_window_s))
    pieces = release(first, wait_us=wait_us, window_us=window_us, shards=1)
    seen = Seen(batch, order([piece.batch for piece in pieces])[0], gone, {})
    if config.identity is not None:
        for column in ("user_key", "linked_at"):
            seen.unknown[column] = "identity: links of the user are not looked up"
    for step in (*config.steps, *config.transforms):
        _do(step, seen)
    return seen


def _do(step: Step, seen: Seen) -> None:
    adds = [field.name for field in step.adds]
    why = _cannot_tell(step, seen.unknown)
    if why is None:
        try:
            step.open()
        except CannotOpenError as error:
            why = str(error)
    if why is not None:
        seen.unknown.update(dict.fromkeys(adds, f"{step.name}: {why}"))
        return
    applied = run_step(step, seen.ordered, Users(), "explain")
    seen.ordered = applied.batch
    seen.gone += [
        f"An event goes nowhere in order: dead letter ({each.reason.value}): {each.message}" for each in applied.refused
    ]
    seen.gone += [f"An event goes nowhere in order: left out by {step.name}"] * len(applied.dropped)


def _cannot_tell(step: Step, unknown: Sequence[str] | dict[str, str]) -> str | None:
    if step.remembers_s:
        return "hangs on what the user did before"
    if isinstance(step, CustomStep):
        if step.kind == "lookup":
            return "asks another service, which is not done here"
        missing = [] if step.when is None else [name for name in step.when.columns if name in unknown]
        if missing:
            return f"its `when` looks at {', '.join(missing)}"
    return None
