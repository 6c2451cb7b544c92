"""Fields: the columns of a batch, and single values in its JSON texts, as the rules let them be kept."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from millrace.config.privacy import JSON_COLUMNS, KEYED, USER_COLUMNS, Path, Rule
from millrace.transforms.counts import count
from millrace.transforms.json_paths import Tree, rewrite
from millrace.transforms.policies import Keys, Protect, on_json, on_text
from millrace.transforms.steps import with_columns

STAGE = "protect"

Column = Callable[[pa.Array], pa.Array]
_LIMITS = (("sources", "source_id"), ("types", "type"), ("events", "event"))


def spread(rules: Sequence[Rule]) -> list[Rule]:
    """Return rules with those that follow from them, behind all that are written.

    RudderStack's SDKs send traits in `context.traits`, some in both places. A previousId is a user's id, or a device's.
    """
    followed = []
    for rule in rules:
        path = rule.path
        if path.column == "traits":
            inside = Path("context_rest", ("traits", *path.keys), path.each)
            followed.append(dataclasses.replace(rule, path=inside))
        if path.column == "user_id" and rule.policy in KEYED:
            followed.append(dataclasses.replace(rule, path=Path("rest", ("previousId",))))
    return [*rules, *followed]


class Fields:
    """What a job's rules do to batches of events."""

    def __init__(self, rules: Sequence[Rule], keys: Keys) -> None:
        self._rules = spread(rules)
        self._keys = keys
        self._limited = [at for at, rule in enumerate(self._rules) if rule.sources or rule.types or rule.events]
        self._on_text = {rule: on_text(rule, keys) for rule in self._rules}
        self._plans: dict[bytes, dict[str, Column]] = {}
        self._moves_user = any(rule.path.column in USER_COLUMNS for rule in self._rules)

    def protect(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch with what may be kept of its fields; same rows, same columns.

        Of the rules for one field the first that is for a row counts; user_key follows user_id and anonymous_id.
        """
        if not self._rules or not batch.num_rows:
            return batch
        columns: dict[str, pa.Array] = {}
        for rows, plan in self._groups(batch):
            for name, protect in plan.items():
                column = columns.get(name, batch.column(name))
                if rows is None:
                    columns[name] = protect(column)
                else:
                    columns[name] = pc.replace_with_mask(column, rows, protect(column.filter(rows)))
        if self._moves_user:
            columns["user_key"] = pc.coalesce(*(columns.get(name, batch.column(name)) for name in USER_COLUMNS))
        return with_columns(batch, [batch.schema.field(name) for name in columns], list(columns.values()))

    def _groups(self, batch: pa.RecordBatch) -> list[tuple[pa.Array | None, dict[str, Column]]]:
        """Return what to do to which rows; None: to all of them."""
        if not self._limited:
            return [(None, self._plan(b""))]
        masks = np.column_stack([_applies(self._rules[at], batch) for at in self._limited])
        packed = np.packbits(masks, axis=1)
        distinct, which = np.unique(packed, axis=0, return_inverse=True)
        if len(distinct) == 1:
            return [(None, self._plan(distinct[0].tobytes()))]
        return [
            (pa.array(which.reshape(-1) == number), self._plan(bits.tobytes())) for number, bits in enumerate(distinct)
        ]

    def _plan(self, packed: bytes) -> dict[str, Column]:
        """Return what is done to each column of rows to which these of the limited rules apply, as packed bits."""
        found = self._plans.get(packed)
        if found is None:
            bits = np.unpackbits(np.frombuffer(packed, np.uint8))[: len(self._limited)]
            out = {at for at, applies in zip(self._limited, bits, strict=True) if not applies}
            rules = [rule for at, rule in enumerate(self._rules) if at not in out]
            found = self._plans[packed] = self._planned(rules)
        return found

    def _planned(self, rules: Sequence[Rule]) -> dict[str, Column]:
        plan: dict[str, Column] = {}
        trees: dict[str, Tree] = {}
        for rule in rules:
            name = rule.path.column
            if name in JSON_COLUMNS:
                act = on_json(rule, self._keys)
                tree = trees.setdefault(name, Tree())
                tree.add(rule.path.keys, act, each=rule.path.each, whole=rule.policy != "keep")
            else:
                plan.setdefault(name, functools.partial(_text_column, rule=rule, protect=self._on_text[rule]))
        return plan | {name: functools.partial(_json_column, tree=tree) for name, tree in trees.items()}


def _applies(rule: Rule, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    rows = np.ones(batch.num_rows, np.bool_)
    for limit, name in _LIMITS:
        words = getattr(rule, limit)
        if words:
            rows &= pc.is_in(batch.column(name), pa.array(sorted(words), pa.string())).to_numpy(zero_copy_only=False)
    return rows


def _text_column(column: pa.Array, rule: Rule, protect: Protect) -> pa.Array:
    if rule.policy == "keep" or column.null_count == len(column):
        return column
    if rule.policy == "drop":
        return pa.nulls(len(column), pa.string())
    if rule.characters is not None:
        return pc.utf8_slice_codeunits(column, 0, rule.characters)
    encoded = pc.dictionary_encode(column)
    return pa.array(map(protect, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


def _json_column(column: pa.Array, tree: Tree) -> pa.Array:
    if column.null_count == len(column):
        return column
    if tree.act is not None:
        return column if tree.act(b"{}") is not None else pa.nulls(len(column), pa.string())
    mask = _may_have(column, tree)
    if not pc.any(mask).as_py():
        return column
    texts = [_rewritten(text, tree) for text in column.filter(mask).cast(pa.binary()).to_pylist()]
    return pc.replace_with_mask(column, mask, pa.array(texts, pa.string()))


def _may_have(column: pa.Array, tree: Tree) -> pa.Array:
    """Say which texts may have one of the keys: all others stay unread."""
    places = list(tree.last_keys())
    searched = {place.quoted for place in places}
    if _has_backslash(column):
        searched |= {place.escape for place in places}
    # One automaton for all of them: twice as fast as a search for one text.
    pattern = "|".join(re.escape(each.decode()) for each in sorted(searched))
    return pc.fill_null(pc.match_substring_regex(column, pattern), False)


def _has_backslash(column: pa.StringArray) -> bool:
    """Say whether a backslash is in any of the texts: a look at all their bytes at once, a tenth of a search."""
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    return bool((data == ord("\\")).any())


def _rewritten(text: bytes, tree: Tree) -> bytes | None:
    try:
        return rewrite(text, tree)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # decode lets no such text pass
        count(STAGE, "unreadable", 1)
        return None
