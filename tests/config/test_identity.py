"""Section `identity`: its defaults, its keys, and each mistake with its line."""

import pytest

from millrace.config.job import ConfigError, JobConfig, read_job
from millrace.schemas.identity import LINKED_AT
from millrace.transforms.link import LinkRule


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read_job(text, "millrace.yaml")
    return str(raised.value).splitlines()


@pytest.mark.parametrize("text", ["identity: {}", "identity:", "identity:\n  remember_days: 365"])
def test_the_section_alone_means_its_defaults(text: str):
    assert read_job(text, "millrace.yaml").identity == LinkRule(("identify", "alias"), 365 * 86_400)


def test_each_key_is_taken():
    config = read_job("identity:\n  link_on: [alias]\n  remember_days: 0.5\n", "millrace.yaml")
    assert config.identity == LinkRule(("alias",), 43_200)
    assert config.added[0] == LINKED_AT


def test_without_the_section_nothing_is_linked_and_no_column_added():
    config = read_job("sources: {}", "millrace.yaml")
    assert (config, config.identity, config.added) == (JobConfig(), None, ())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("identity:\n  link_on: [identfy]",
         "millrace.yaml:2: identity: link_on: 'identfy' is not one of its values; did you mean identify?"),
        ("identity:\n  link_on: []",
         "millrace.yaml:2: identity: link_on: is empty, so nothing would link; remove the section instead"),
        ("identity:\n  link_on: alias",
         "millrace.yaml:2: identity: link_on: has to be a list, such as [one, two], not 'alias'"),
        ("identity:\n\n  remember_days: never",
         "millrace.yaml:3: identity: remember_days: has to be a number above 0, up to 3,650, not 'never'"),
        ("identity:\n  remeber_days: 3",
         "millrace.yaml:2: identity: 'remeber_days' is not known here; did you mean remember_days?"),
        ("identity: yes", "millrace.yaml:1: identity: has to be `name: value` lines, not 'yes'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_do(text: str, line: str):
    assert mistakes(text) == [line]
