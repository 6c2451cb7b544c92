"""The section `privacy:`: what it means, and every mistake with its line and what to do."""

import re
import textwrap
from pathlib import Path as FilePath

import pytest

from millrace.config.job import ConfigError, read_job
from millrace.config.privacy import CONSENT_DENIED, Consent, Key, Path, Privacy, Rule
from millrace.config.secrets import SecretReference

KEY = "keys: [{version: v1, secret: env:KEY}]"
PATHS = "a column such as context_ip, or a path such as properties.email, traits.address.street, properties.items[].sku"


def read(text: str) -> Privacy:
    found = read_job(textwrap.dedent(text), "F").privacy
    assert found is not None
    return found


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_job(textwrap.dedent(text), "F")
    return [line.removeprefix("F:") for line in str(caught.value).splitlines()]


def of_section(line: str) -> list[str]:
    """Give what is said of a section with one line, which is line 2."""
    return [each.replace(" privacy: ", " ") for each in mistakes(f"privacy:\n  {line}\n")]


def of_rule(rule: str) -> list[str]:
    """Give what is said of a rule, at line 4."""
    found = mistakes(f"privacy:\n  {KEY}\n  fields:\n    - {{{rule}}}\n")
    return [each.replace(" privacy: fields: ", " ") for each in found]


def test_all_that_can_be_said():
    found = read("""
        privacy:
          keys:
            - {version: v2, secret: env:KEY_2}
            - {version: v1, secret: file:/run/key}
          fields:
            - {field: context_ip, policy: keep, sources: [office]}
            - {field: context_ip, policy: truncate}
            - {field: 'properties.items[].sku', policy: encrypt, types: [track], events: [Order Completed]}
            - {field: 'traits."e.mail"."a\\"b"', policy: hash}
            - {field: 'properties.tags[]', policy: truncate, characters: 5}
            - {field: traits, policy: drop}
          consent: {required_for_archive: [ads, ads], strategy: or, silent: drop}
          suppression: {file: gs://bucket/ids}
          unreadable: keep
    """)
    assert found == Privacy(
        rules=(
            Rule(Path("context_ip"), "keep", sources=frozenset(["office"])),
            Rule(Path("context_ip"), "truncate"),
            Rule(Path("properties", ("items", "sku")), "encrypt", types=frozenset(["track"]),
                 events=frozenset(["Order Completed"])),
            Rule(Path("traits", ("e.mail", 'a"b')), "hash"),
            Rule(Path("properties", ("tags",), each=True), "truncate", 5),
            Rule(Path("traits"), "drop"),
        ),
        keys=(Key("v2", SecretReference("env", "KEY_2")), Key("v1", SecretReference("file", "/run/key"))),
        consent=Consent(("ads",), "or", "drop"),
        suppression="gs://bucket/ids",
        unreadable="keep",
    )  # fmt: skip


def test_consent_adds_its_column_and_nothing_else_does():
    assert CONSENT_DENIED in read_job("privacy: {consent: {}}", "F").added
    assert CONSENT_DENIED not in read_job("privacy: {fields: []}", "F").added
    assert read_job("", "F").privacy is None


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("field: context_ip", "4: policy is missing; write {field: context_ip, policy: truncate}"),
        ("policy: drop", "4: field is missing; write {field: context_ip, policy: truncate}"),
        (
            "field: context_ip, policy: truncat",
            ("4: context_ip: policy: 'truncat' is not one of its values; did you mean truncate?"),
        ),
        ("field: context_ip, polcy: drop", "4: 'polcy' is not known here; did you mean policy?"),
        ("field: ip, policy: drop", f"4: 'ip' is no field; write {PATHS}"),
        ("field: [a], policy: drop", "4: field: has to be a text; put a list in quotes if it is meant so"),
        ("field: properties..a, policy: drop", f"4: 'properties..a' is no path; write {PATHS}; put odd keys in quotes"),
        ("field: rest, policy: drop", "4: rest: it holds whatever has no column; name a path in it"),
        (
            "field: 'properties.a b', policy: drop",
            f"4: 'properties.a b' is no path; write {PATHS}; put odd keys in quotes",
        ),
        ("field: 'properties.', policy: drop", f"4: 'properties.' is no path; write {PATHS}; put odd keys in quotes"),
        (
            "field: 'properties.a[0]', policy: drop",
            (f"4: 'properties.a[0]' is no path; write {PATHS}; put odd keys in quotes"),
        ),
        ("field: context.ip, policy: drop", "4: 'context.ip' is in a column; write context_ip"),
        ("field: context.userAgent, policy: drop", "4: 'context.userAgent' is in a column; write context_user_agent"),
        (
            "field: context.traits.email, policy: drop",
            ("4: 'context.traits.email' is in a column; write context_rest.traits.email"),
        ),
        (
            "field: user_key, policy: hash",
            ("4: user_key cannot be changed: it follows user_id and anonymous_id; write rules for these"),
        ),
        ("field: message_id, policy: hash", "4: message_id cannot be changed: order, copies and accounts hang on it"),
        ("field: user_id, policy: drop", "4: user_id: drop would leave events without their user; hash or encrypt it"),
        (
            "field: anonymous_id, policy: truncate, characters: 3",
            "4: anonymous_id: truncate would leave events without their user; hash or encrypt it",
        ),
        (
            "field: traits, policy: hash",
            ("4: traits: a whole column of JSON is dropped or kept; for hash name a path in it"),
        ),
        (
            "field: context_ip, policy: truncate, characters: 3",
            ("4: context_ip: an address is truncated to its network; remove this"),
        ),
        (
            "field: context_ip, policy: drop, types: [track]",
            ("4: context_ip: an address is protected before its event can be read; only sources can be named here"),
        ),
        (
            "field: context_locale, policy: truncate",
            ("4: context_locale: truncate without characters is for addresses; write how many characters are left"),
        ),
        (
            "field: context_locale, policy: hash, characters: 2",
            ("4: context_locale: only truncate has characters; remove this from hash"),
        ),
        (
            "field: context_locale, policy: truncate, characters: 0",
            ("4: context_locale: characters: has to be a whole number from 1 to 100,000, not '0'"),
        ),
        (
            "field: properties.a, policy: drop, types: [tracks]",
            ("4: properties.a: types: 'tracks' is none; there are: identify, track, page, screen, group, alias"),
        ),
        (
            "field: properties.a, policy: drop, sources: []",
            ("4: properties.a: sources is empty; write those that the rule is for, or remove it for all"),
        ),
    ],
)
def test_a_mistake_in_a_rule_is_told_with_its_line_and_what_to_do(rule: str, said: str):
    assert said in of_rule(rule)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fields: {}", "2: fields: has to be a list, such as [one, two], not `name: value` lines"),
        ("fields: [{field: user_id, policy: hash}]", "2: fields: hash needs a key; add keys: [{version, secret}]"),
        ("keys: []", "2: keys is empty; add {version: v1, secret: env:NAME}, or remove it"),
        ("keys: [{secret: env:K}]", "2: keys: version is missing; write {version: v1, secret: env:NAME}"),
        ("keys: [{version: v1}]", "2: keys: secret is missing; write {version: v1, secret: env:NAME}"),
        ("keys: [{version: V 1, secret: env:K}]", "2: keys: version has to be 1 to 8 characters a-z 0-9, such as v1"),
        ("keys: [{version: v1, secret: env:K}, {version: v1, secret: env:L}]",
         "2: keys: version v1 is there already; give this key another"),
        ("keys: [{version: v1, secret: gcp-sm:projects/p/secrets/s/versions/latest}]",
         "2: keys: secret: `latest` would become another key under the same version; name the version"),
        ("consent: {required_for_archive: ads}",
         "2: consent: required_for_archive: has to be a list, such as [one, two], not 'ads'"),
        ("consent: {strategy: or}", "2: consent: strategy means nothing without required_for_archive; add it"),
        ("consent: {required_for_archive: [a], silent: no}",
         "2: consent: silent: 'no' is not one of its values; there are: pass, drop"),
        ("suppression: {}", "2: suppression: file is missing; write file: /path or file: gs://BUCKET/NAME"),
        ("suppression: {file: ids.txt}",
         "2: suppression: file: 'ids.txt' has to be /path or gs://BUCKET/NAME"),
        ("unreadable: never", "2: unreadable: 'never' is not one of its values; there are: drop, keep"),
        ("key: []", "2: 'key' is not known here; did you mean keys?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_do(line: str, said: str):
    assert of_section(line) == [said]


def test_a_rule_that_is_never_reached_is_a_mistake_and_one_behind_a_limited_one_is_not():
    rules = "\n".join(
        f"    - {{field: context_ip, policy: {each}}}" for each in ("keep, sources: [office]", "truncate", "drop")
    )
    assert mistakes(f"privacy:\n  fields:\n{rules}\n") == [
        "5: privacy: fields: line 4 has this field already; remove one of the two"
    ]


@pytest.mark.parametrize(
    "keys", ["[{version: v1, secret: hunter2hunter2}]", "hunter2hunter2", "[hunter2hunter2]", "{v1: hunter2hunter2}",
             "[{version: v1, secret: [hunter2hunter2]}]"]
)  # fmt: skip
def test_a_plain_secret_is_a_mistake_with_its_line_and_is_not_repeated(keys: str):
    (said,) = mistakes(f"privacy:\n  unreadable: keep\n  keys: {keys}\n")
    assert said.startswith("3: privacy: keys: ")
    assert "env:NAME" in said
    assert "hunter2" not in said


def test_all_mistakes_are_told_at_once():
    found = mistakes(
        "privacy:\n  unreadable: never\n  fields:\n    - {field: ip, policy: drop}\n    - {policy: drop}\n"
    )
    assert [each.partition(":")[0] for each in found] == ["2", "4", "5"]


def documented(name: str) -> list[str]:
    """Return the sections `privacy:` that a document shows."""
    text = (FilePath(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")
    return [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("privacy:")]


@pytest.mark.parametrize("name", ["privacy.md", "config.md"])
def test_what_the_documents_show_is_right(name: str):
    (shown,) = documented(name)
    assert read(shown).rules


def test_the_document_lists_every_key():
    text = (FilePath(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    section = text.split("\n## privacy\n")[1].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE)
    assert mistakes("privacy: {x: 1}") == [f"1: privacy: 'x' is not known here; there are: {', '.join(listed)}"]
