"""The SDK's session ids are those that a parser finds, whatever else a context holds."""

import json
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.transforms.enrich.sdk_sessions import NO_ID, sdk_ids

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["sessionId", '"sessionId":1', '{"sessionId":2}', ",", "}", '\\"', "a,b"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONTEXTS = st.dictionaries(TEXTS, VALUES, max_size=4) | st.tuples(
    st.dictionaries(TEXTS, VALUES, max_size=2), VALUES, st.dictionaries(TEXTS, VALUES, max_size=2)
).map(lambda parts: {**parts[0], "sessionId": parts[1], **parts[2]})


def expected(context: dict[str, Any] | None) -> str | None:
    id_ = (context or {}).get("sessionId")
    if isinstance(id_, bool) or not isinstance(id_, int | str):
        return None
    text = str(id_).strip()
    return text if 0 < len(text) <= 100 else None


@settings(deadline=None)
@given(st.lists(st.none() | CONTEXTS, max_size=6), st.sampled_from([(",", ":"), (", ", ": ")]), st.booleans())
def test_they_are_what_a_parser_finds(
    contexts: list[dict[str, Any] | None], separators: tuple[str, str], ensure_ascii: bool
):
    texts = [
        None if context is None else json.dumps(context, separators=separators, ensure_ascii=ensure_ascii)
        for context in contexts
    ]
    numbers, ids = sdk_ids(pa.array(texts, pa.string()))
    assert [None if number == NO_ID else ids[number] for number in numbers.tolist()] == list(map(expected, contexts))
    assert len(set(ids)) == len(ids)
