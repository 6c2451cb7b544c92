"""The sources of a local run: made once, kept, and secret where they must be."""

import stat
from pathlib import Path

import pytest

from millrace.collector.keys import Kind
from millrace.collector.sources import FILE, Sources
from millrace.config.job import load_job
from millrace.local.sources import APP, SERVER, WEB, make_sources


def test_each_key_opens_its_source_and_is_the_same_next_time(tmp_path: Path) -> None:
    keys = make_sources(tmp_path / "new")
    assert make_sources(tmp_path / "new") == keys
    sources = Sources.load(tmp_path / "new" / FILE)
    found = {name: sources.by_key(key) for name, key in keys.items()}
    assert {name: source and (source.id, source.kind) for name, source in found.items()} == {
        WEB: (WEB, Kind.BROWSER), APP: (APP, Kind.MOBILE), SERVER: (SERVER, Kind.SERVER),
    }  # fmt: skip
    assert str(sources.client_ip("127.0.0.1", "203.0.113.7")) == "203.0.113.7"


def test_the_keys_are_for_nobody_else_and_the_sources_hold_none(tmp_path: Path) -> None:
    keys = make_sources(tmp_path)
    assert stat.S_IMODE((tmp_path / "write_keys.json").stat().st_mode) == 0o600
    text = (tmp_path / FILE).read_text()
    assert not [key for key in keys.values() if key in text]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "write_keys.json"]


def test_a_start_that_was_interrupted_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    keys = make_sources(tmp_path)
    (tmp_path / FILE).unlink()
    assert make_sources(tmp_path) == keys


def test_sources_of_ones_own_stay_where_they_have_the_keys(tmp_path: Path) -> None:
    make_sources(tmp_path)
    changed = (tmp_path / FILE).read_text().replace("  shop-app:\n", "  shop-app:\n    events_per_s: 50\n")
    (tmp_path / FILE).write_text(changed)
    make_sources(tmp_path)
    assert (tmp_path / FILE).read_text() == changed


def test_sources_with_other_keys_are_not_overwritten(tmp_path: Path) -> None:
    make_sources(tmp_path)
    (tmp_path / "write_keys.json").unlink()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match=r"shop-web has not the key in .*write_keys\.json; remove both files"):
        make_sources(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_the_job_reads_its_sections_from_the_same_file(tmp_path: Path) -> None:
    make_sources(tmp_path)
    config = load_job(str(tmp_path / FILE))
    assert config.identity is not None
    steps = ["user_agent", "url", "referrer", "campaign", "locale", "bots", "sessions", "touch", "lineage"]
    assert [step.name for step in config.steps] == steps
