"""Mistakes in the file of sources: each with its line, all at once, and never the key that should not be there."""

import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.collector.keys import Kind, new_key
from millrace.collector.sources import Sources, SourcesError

HASH = "a" * 64
NETWORK = "write an address or a network such as 10.0.0.0/8"
MEMBERS = "name, kind, keys, origins, events_per_s, burst_events, event_bytes, request_bytes, request_events, ip, types"
KEY = f"{{begins: mrb_4fQx, sha256: {HASH}}}"


def mistakes(text: str) -> list[str]:
    """Give what is said of a text, without the name of the file."""
    with pytest.raises(SourcesError) as caught:
        Sources.parse(textwrap.dedent(text), "F")
    return [line.removeprefix("F:").strip() for line in str(caught.value).splitlines()]


def of_source(line: str, kind: str = "server") -> list[str]:
    """Give what is said of a source with one line more, which is line 4."""
    return mistakes(f"sources:\n  shop:\n    kind: {kind}\n    {line}\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("orgins: []", "4: shop: 'orgins' is not known here; did you mean origins?"),
        ("kind: server", "4: shop: 'kind' is there already, at line 3; keep one"),
        ("<<: {ip: keep}", f"4: shop: '<<' is not known here; there are: {MEMBERS}"),
        ("? [ip]\n    : keep", "4: shop: a name has to be a plain word, not a list"),
        ("name: 12", "4: shop: name: has to be a text; put '12' in quotes if it is meant so"),
        ("name: ''", "4: shop: name: has to be a text; put nothing in quotes if it is meant so"),
        ("ip: truncated", "4: shop: ip: 'truncated' is not one of its values; did you mean truncate?"),
        ("ip: [drop]", "4: shop: ip: a list is not one of its values; there are: drop, truncate, keep"),
        ("types: track", "4: shop: types: has to be a list, such as [one, two], not 'track'"),
        ("types: [track, pages]", "4: shop: types: 'pages' is not one of its values; did you mean page?"),
        ("types: []", "4: shop: types is empty; write those that are allowed, or remove it to allow all"),
        ("events_per_s: 0", "4: shop: events_per_s: has to be a number above 0, up to 1,000,000, not '0'"),
        ("events_per_s: -5", "4: shop: events_per_s: has to be a number above 0, up to 1,000,000, not '-5'"),
        ("events_per_s: .inf", "4: shop: events_per_s: has to be a number above 0, up to 1,000,000, not '.inf'"),
        ("events_per_s: 10/s", "4: shop: events_per_s: has to be a number above 0, up to 1,000,000, not '10/s'"),
        ("burst_events: 5", "4: shop: burst_events means nothing without events_per_s; add it, or remove this"),
        ("event_bytes: 2_000_000",
         "4: shop: event_bytes: has to be a whole number from 1 to 1,048,576, not '2_000_000'"),
        ("event_bytes: 1.5", "4: shop: event_bytes: has to be a whole number from 1 to 1,048,576, not '1.5'"),
        ("request_bytes: 32 KB", "4: shop: request_bytes: has to be a whole number from 1 to 8,388,608, not '32 KB'"),
        ("request_events: 0", "4: shop: request_events: has to be a whole number from 1 to 50,000, not '0'"),
        ("origins: ['https://a.example']", "4: shop: only browsers have origins; remove this, or write kind: browser"),
        (f"keys: [{KEY}, {{begins: mrb_ZZZZ, sha256: {'b' * 64}}}, {{begins: mrb_YYYY, sha256: {'c' * 64}}}]",
         "4: shop: keys: two at once, to change from one to the other, are the most; remove one"),
        (f"keys: [{{begins: mrb_4fQx, sha256: {HASH}, until: soon}}]",
         "4: shop: keys: until: has to be a date or time such as 2026-12-31 or 2026-12-31T18:00:00Z, not 'soon'"),
        (f"keys: [{KEY}, {KEY}]", "2: shop: keys: one is a key of shop, line 2, already; remove one of the two"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_do(line, said):
    assert of_source(line) == [said]


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://bücher.example", "https://*"])
def test_what_is_no_origin_is_told(origin):
    assert of_source(f"origins: ['{origin}']", "browser") == [
        f"4: shop: origins: {origin!r} is no origin: write scheme and host, such as https://shop.example, with no path"
    ]


def test_a_browser_source_says_which_pages_may_use_it():
    advice = 'write those of your pages, or ["*"] for any page of any site'
    assert of_source("ip: keep", "browser") == [f"2: shop: origins is missing; {advice}"]
    assert of_source("origins: []", "browser") == [f"4: shop: origins is empty; {advice}"]
    assert of_source("origins: [null]", "browser") == [
        "4: shop: origins: has to be a text; put 'null' in quotes if it is meant so"
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["no source is in it; `millrace source add NAME` adds one"]),
        ("# only a comment\n", ["no source is in it; `millrace source add NAME` adds one"]),
        ("sources:\n", ["no source is in it; `millrace source add NAME` adds one"]),
        ("- shop\n", ["1: the file: has to be `name: value` lines, not a list"]),
        ("sources: [shop]\n", ["1: sources: has to be `name: value` lines, not a list"]),
        ("source:\n  shop: {kind: server}\n", ["1: the file: 'source' is not known here; did you mean sources?"]),
        ("sources:\n  shop:\n", ["2: shop: has to be `name: value` lines, not nothing"]),
        ("sources:\n  shop: {ip: keep}\n", ["2: shop: kind is missing; write one of browser, mobile, server"]),
        ("sources:\n  my shop: {kind: server}\n",
         ["2: sources: 'my shop' is no name; take 1 to 64 letters, digits or . _ -"]),
        ("sources:\n  shop: {kind: server\n\n",
         ["4: not YAML: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'"]),
        ("sources:\n\tshop: {kind: server}\n",
         ["2: not YAML: while scanning for the next token, found character '\\t' that cannot start any token"]),
        ("sources: &a {shop: *b}\n", ["1: not YAML: found undefined alias 'b'"]),
        ("sources:\n  shop: {kind: server}\n---\nmore: 1\n",
         ["3: not YAML: expected a single document in the stream, but found another document"]),
        ("a\n\x07", ["2: not YAML: the character U+0007 is not allowed"]),
        ("[" * 5_000, ["nested too deeply"]),
        ("trusted_proxies: [10.0.0.1/8, proxy.example, 7]\nsources: {shop: {kind: server}}\n",
         ["1: trusted_proxies: 10.0.0.1/8 has host bits set; " + NETWORK,
          "1: trusted_proxies: 'proxy.example' does not appear to be an IPv4 or IPv6 network; " + NETWORK,
          "1: trusted_proxies: has to be a text; put '7' in quotes if it is meant so"]),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_as_a_whole_is_told(text, said):
    assert mistakes(text) == said


def test_all_mistakes_are_told_at_once_in_the_order_of_lines():
    text = f"""\
        sources:
          shop:
            kind: browser
            orgins: [https://shop.example]
            ip: trunc
          billing:
            kind: server
            keys: [{KEY}]
          copy:
            kind: server
            keys: [{KEY}]
        trusted_proxies: 10.0.0.0/8
        """
    assert mistakes(text) == [
        '2: shop: origins is missing; write those of your pages, or ["*"] for any page of any site',
        "4: shop: 'orgins' is not known here; did you mean origins?",
        "5: shop: ip: 'trunc' is not one of its values; did you mean truncate?",
        "9: copy: keys: one is a key of billing, line 6, already; remove one of the two",
        "12: trusted_proxies: has to be a list, such as [one, two], not '10.0.0.0/8'",
    ]


LEAKS = [
    "keys: [KEY]",
    "keys: KEY",
    "keys: {KEY: 1}",
    "keys: [{key: KEY}]",
    "keys: [{begins: KEY, sha256: " + HASH + "}]",
    "keys: [{begins: mrb_4fQx, sha256: KEY}]",
]


@pytest.mark.parametrize("leak", [*LEAKS, "name: shop # KEY", "name: 'the KEY'", "ip: KEY", "KEY: 1"])
def test_our_own_key_in_plain_text_is_refused_wherever_it_stands_and_not_repeated(leak):
    key = new_key(Kind.SERVER)
    (said,) = of_source(leak.replace("KEY", key))
    assert said.startswith("4: a write key in plain text: only its hash belongs here")
    assert key not in said


@pytest.mark.parametrize("leak", [leak for leak in LEAKS if leak != "keys: {KEY: 1}"])
def test_a_key_made_elsewhere_is_refused_where_a_hash_belongs_and_not_repeated(leak):
    key = "2OOtyXfNgZLqKzHrYBcRUPwAaVm"
    said = "\n".join(of_source(leak.replace("KEY", key)))
    assert said
    assert key not in said


@pytest.mark.parametrize("missing", ["begins: mrb_4fQx", f"sha256: {HASH}"])
def test_half_a_key_is_no_key(missing):
    (said,) = of_source(f"keys: [{{{missing}}}]")
    assert said.startswith("4: shop: keys: ")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(SourcesError, match=r"none\.yaml: cannot be read: .*No such file"):
        Sources.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("sources: {bücher: {kind: server}}".encode("latin-1"))
    with pytest.raises(SourcesError, match=r"latin\.yaml: cannot be read: .*utf-8"):
        Sources.load(tmp_path / "latin.yaml")


WORDS = st.sampled_from(
    [
        "sources",
        "trusted_proxies",
        "shop",
        "kind",
        "server",
        "browser",
        "keys",
        "begins",
        "sha256",
        "origins",
        "*",
        HASH,
    ]
)
SCALARS = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.dates())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(SCALARS, inner, max_size=4)),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.one_of(VALUES, st.fixed_dictionaries({"sources": st.dictionaries(WORDS, VALUES, max_size=3)})))
def test_no_yaml_does_anything_but_load_or_say_what_is_wrong(value):
    assert loaded_or_told(yaml.safe_dump(value))


@settings(max_examples=300)
@given(st.text(alphabet=st.sampled_from("sources:\n -[]{}?&*!|>'\"#%@`,\t\r\x85\u2028abc01"), max_size=60))
def test_no_text_does_anything_but_load_or_say_what_is_wrong(text):
    assert loaded_or_told(text)


def loaded_or_told(text: str) -> bool:
    """Say whether a text gives sources, or mistakes at lines that it has."""
    try:
        return bool(Sources.parse(text).all)
    except SourcesError as error:
        lines = range(1, len(text.splitlines()) + 2)  # at the end of the text is a line more
        return bool(error.mistakes) and all(line is None or line in lines for line, _ in error.mistakes)
