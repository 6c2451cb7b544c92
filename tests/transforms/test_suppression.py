"""Suppression: the list of users, and that a changed one counts soon."""

import logging
import os
from pathlib import Path

import pyarrow as pa
import pytest

from millrace.transforms.suppression import LOOK_S, Suppression, SuppressionError


class Clock:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def write(file: Path, text: str, at_s: int) -> None:
    """Write the file as of a time, since two writes may fall into one tick of the clock."""
    file.write_text(text, encoding="utf-8")
    os.utime(file, (at_s, at_s))


def test_rows_in_which_any_column_has_a_listed_id(tmp_path: Path):
    write(tmp_path / "ids", "\ufeffann\r\n\n  bob \nÄnn ☕\n# eve\n", 1)
    users = Suppression(str(tmp_path / "ids"), lambda user: [f"h:{user}"])
    columns = [
        pa.array(["ann", "eve", None, "x", None, "h:bob", "# eve"]),
        pa.array([None, None, "bob", "Änn ☕", None, None, None]),
    ]
    assert users.rows(columns).tolist() == [True, False, True, True, False, True, True]
    assert users.rows([each.slice(0, 0) for each in columns]).tolist() == []


def test_a_changed_file_counts_at_the_next_look(tmp_path: Path):
    clock, file = Clock(), tmp_path / "ids"
    write(file, "ann\n", 1)
    users = Suppression(str(file), lambda _: [], clock)
    write(file, "bob\n", 2)
    clock.now_s = LOOK_S - 1
    users.refresh()
    assert ("ann" in users, "bob" in users) == (True, False)
    clock.now_s = LOOK_S
    users.refresh()
    assert ("ann" in users, "bob" in users) == (False, True)


def test_while_the_file_cannot_be_read_the_list_before_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    clock, file = Clock(), tmp_path / "ids"
    write(file, "zoe\n", 1)
    users = Suppression(str(file), lambda _: [], clock)
    file.unlink()
    clock.now_s += LOOK_S
    with caplog.at_level(logging.ERROR):
        users.refresh()
    assert "zoe" in users
    assert "still holds" in caplog.text
    assert "zoe" not in caplog.text.replace(str(file), "")
    file.write_bytes(b"\xff\xfe")
    clock.now_s += LOOK_S
    users.refresh()
    assert "zoe" in users
    write(file, "bob\n", 3)
    clock.now_s += LOOK_S
    users.refresh()
    assert ("zoe" in users, "bob" in users) == (False, True)


def test_an_empty_list_leaves_out_nobody(tmp_path: Path):
    write(tmp_path / "ids", "\n", 1)
    users = Suppression(str(tmp_path / "ids"), lambda _: [])
    assert not users
    assert users.rows([pa.array(["", "ann"])]).tolist() == [False, False]


def test_a_list_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(SuppressionError, match=r"suppression list .*/ids is not there: write one id a line"):
        Suppression(str(tmp_path / "ids"), lambda _: [])
    (tmp_path / "ids").write_bytes(b"\xff")
    with pytest.raises(SuppressionError, match="is not UTF-8: write one id a line"):
        Suppression(str(tmp_path / "ids"), lambda _: [])
