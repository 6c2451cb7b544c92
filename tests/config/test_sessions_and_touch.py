"""The sections `sessions` and `touch`: what they mean, and every mistake with its line and what to do."""

import re
from pathlib import Path

import pytest

from millrace.collector import source_file
from millrace.config.job import ConfigError, JobConfig, read_job
from millrace.transforms.enrich import sessions, touch
from millrace.transforms.enrich.sessions import Sessions
from millrace.transforms.enrich.touch import Touch
from tests.transforms.test_steps import Seen

EVERYTHING = """
sessions:
  gap_min: 20
  longest_h: 12.5
  respect_sdk: false
  remember_days: 60
  remember_users: 1_000
touch:
  source: [campaign_source]
  medium: []
  campaign: [campaign_name, context_campaign_name]
  click: [click_id, gclid]
  referrer_class: []
  internal_hosts: [Pay.example]
  remember_days: 90
  remember_users: 2000
"""
DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def test_without_the_sections_nothing_is_done():
    assert read_job("sources: {}", "m.yaml") == JobConfig()
    assert JobConfig().steps == ()


def test_a_section_with_nothing_in_it_is_at_its_defaults():
    config = read_job("sessions:\ntouch: {}", "m.yaml")
    assert (config.sessions, config.touch) == (Sessions(), Touch())


def test_every_key_is_read():
    config = read_job(EVERYTHING, "m.yaml")
    assert config.sessions == Sessions(20, 12.5, False, 60, 1_000)
    campaign = ("campaign_name", "context_campaign_name")
    assert config.touch == Touch(
        ("campaign_source",), (), campaign, ("click_id", "gclid"), (), ("pay.example",), 90, 2_000
    )


def test_enrichments_run_first_then_sessions_then_touch_and_their_columns_come_in_that_order():
    config = JobConfig(enrich=(Seen(),), sessions=Sessions(), touch=Touch())
    assert [step.name for step in config.steps] == ["seen", "sessions", "touch"]
    assert config.added == (*Seen.adds, *sessions.FIELDS, *touch.FIELDS)


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("sessions: yes", "1: sessions: has to be `name: value` lines, not 'yes'"),
        ("sessions:\n  gap: 30", "2: sessions: 'gap' is not known here; did you mean gap_min?"),
        ("sessions:\n  gap_min: 0", "2: sessions: gap_min: has to be a number above 0, up to 1,440, not '0'"),
        ("sessions:\n\n  longest_h: -1", "3: sessions: longest_h: has to be a number above 0, up to 8,760, not '-1'"),
        ("sessions:\n  respect_sdk: yes", ("2: sessions: respect_sdk: 'yes' is not one of its values; "
         "there are: true, false")),
        ("sessions:\n  remember_users: 1.5", ("2: sessions: remember_users: has to be a whole number from 1 to "
         "100,000,000, not '1.5'")),
        ("sessions:\n  gap_min: 90\n  remember_days: 0.01", ("3: sessions: remember_days is shorter than gap_min; "
         "write at least 0.0625")),
        ("touch: []", "1: touch: has to be `name: value` lines, not a list"),
        ("touch:\n  source: utm", "2: touch: source: has to be a list, such as [one, two], not 'utm'"),
        ("touch:\n  click: [gclid, 7]", "2: touch: click: has to be a text; put '7' in quotes if it is meant so"),
        ("touch:\n  remember_days: x", "2: touch: remember_days: has to be a number above 0, up to 3,650, not 'x'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_to_do(text: str, mistake: str):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'm.yaml:{mistake}')}$"):
        read_job(text, "m.yaml")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read_job("sessions:\n  gap_min: x\n  longest_h: y\ntouch: 1", "m.yaml")
    assert [mistake.line for mistake in caught.value.mistakes] == [2, 3, 4]


def test_the_collector_knows_that_the_sections_are_there():
    assert source_file.read(EVERYTHING, "m.yaml").sources == ()


@pytest.mark.parametrize("section", ["sessions", "touch"])
def test_the_document_lists_every_key_and_its_example_is_right(section: str):
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    step = {"sessions": Sessions(), "touch": Touch()}[section]
    assert re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE) == list(vars(step))
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert getattr(read_job(example, "docs/config.md"), section) is not None


def test_a_host_written_as_an_address_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"touch: internal_hosts: 'https://pay\.example/' is no host"):
        read_job('touch: {internal_hosts: ["https://pay.example/"]}', "millrace.yaml")
