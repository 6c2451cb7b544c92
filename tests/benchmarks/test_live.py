"""The benchmark of lanes without order: it runs, and all is delivered as it comes."""

import re

import pytest

from benchmarks import live


@pytest.mark.slow
def test_what_is_published_is_delivered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert live.main(["--only=alone", "--rate=500", "--seconds=2", "--per_message", "20", "1"]) == 0
    printed = capsys.readouterr().out
    print(printed)
    rows = [re.split(r"  +", line) for line in printed.splitlines()[2:]]
    assert [row[0] for row in rows] == ["20 a message", "1 a message"]
    for _, published, delivered, _, p99, *_ in rows:
        assert published == delivered
        assert float(p99.removesuffix(" ms").replace(",", "")) < 8_000  # a lease is 20 s, and nothing waits for its end
