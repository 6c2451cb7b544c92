"""Consent: what the SDKs' forms deny, and whom that blocks."""

import importlib
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.config.privacy import CONSENT_DENIED
from millrace.transforms.consent import blocked, denied
from tests.support.decoding import decode, event, rows

# As RudderStack's JavaScript SDK sends it (context.consentManagement), and Segment's (context.consent).
RUDDER = {
    "provider": "oneTrust",
    "allowedConsentIds": ["C0001"],
    "deniedConsentIds": ["C0004", "C0002"],
    "resolutionStrategy": "and",
}
SEGMENT = {"categoryPreferences": {"Advertising": False, "Analytics": True, "Functional": False}}


def told(context: dict[str, Any] | None) -> str | None:
    """Return the column of one event with a context, through decode."""
    batch = decode(event(context=context)).batch
    found: str | None = denied(batch.column("context_rest"))[0].as_py()
    return found


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ({"consentManagement": RUDDER}, '["C0002","C0004"]'),
        ({"consentManagement": {**RUDDER, "deniedConsentIds": []}}, "[]"),
        ({"consentManagement": {"allowedConsentIds": ["a"]}}, "[]"),
        ({"consentManagement": {**RUDDER, "deniedConsentIds": {"b": "B", "a": "A"}}}, '["A","B"]'),
        ({"consentManagement": {"deniedConsentIds": [7, " x ", "x", None, True, {}]}}, '["7","x"]'),
        ({"consent": SEGMENT}, '["Advertising","Functional"]'),
        ({"consent": {"categoryPreferences": {}}}, "[]"),
        ({"consent": {"categoryPreferences": {"ads": "true", "b": None, "c": 1, "d": True}}}, '["ads","b","c"]'),
        ({"consent": SEGMENT, "consentManagement": RUDDER}, '["Advertising","C0002","C0004","Functional"]'),
        ({"consent": True, "consentManagement": "no"}, None),
        ({"consent": {"version": 2}, "consentManagement": {"provider": "oneTrust"}}, None),
        ({"consent": {"categoryPreferences": ["ads"]}, "screen": {"width": 1}}, None),
        ({"traits": {"consent": SEGMENT}}, None),
        ({"locale": "de"}, None),
        (None, None),
    ],
)  # fmt: skip
def test_what_an_event_denies(context: dict[str, Any] | None, said: str | None):
    assert told(context) == said


@pytest.mark.parametrize("package", ["rudderstack", "segment"])
def test_what_the_python_sdks_put_around_it_is_heard(package: str):
    client = importlib.import_module(f"{package}.analytics.client").Client("key", send=False)
    said = []
    for context in ({"consentManagement": RUDDER}, {"consent": SEGMENT}):
        _, message = client.track(user_id="ann", event="Bought", context=context)
        (row,) = denied(decode(json.dumps(message, default=str).encode()).batch.column("context_rest")).to_pylist()
        said.append(row)
    assert said == ['["C0002","C0004"]', '["Advertising","Functional"]']


def test_a_key_spelled_with_escapes_is_heard():
    text = json.dumps({"consentManagement": RUDDER}).replace("consentM", "\\u0063onsen\\u0074M")
    assert denied(pa.array([text, None])).to_pylist() == ['["C0002","C0004"]', None]


def test_segment_s_consent_is_kept_with_the_rest_of_the_context():
    assert json.loads(rows(decode(event(context={"consent": SEGMENT})), "context_rest")[0]) == {"consent": SEGMENT}


FORMS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["deniedConsentIds", "categoryPreferences", "x"]), inner, max_size=3)
    ),
)


@given(FORMS)
def test_no_form_raises_and_every_answer_is_a_list_of_texts(value: Any):
    texts = [json.dumps({name: value}) for name in ("consent", "consentManagement")]
    for said in denied(pa.array(texts)).to_pylist():
        assert said is None or all(isinstance(each, str) for each in json.loads(said))


@pytest.mark.parametrize(
    ("required", "strategy", "silent", "mask"),
    [
        (["a"], "and", False, [True, False, True, False, False]),
        (["a", "b"], "and", False, [True, False, True, True, False]),
        (["a", "b"], "or", False, [False, False, True, False, False]),
        (["a", "b"], "or", True, [False, False, True, False, True]),
        ([], "and", True, [False] * 5),
    ],
)
def test_whom_it_blocks(required: list[str], strategy: str, silent: bool, mask: list[bool]):
    said = pa.array(['["a"]', "[]", '["a","b","c"]', '["b"]', None], pa.string())
    batch = pa.RecordBatch.from_arrays([said], schema=pa.schema([CONSENT_DENIED]))
    assert blocked(batch, required, strategy, silent=silent).tolist() == mask
