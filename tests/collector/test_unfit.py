"""Unfit messages: kept in files that a person can read and a program can send again."""

import base64
import json

import pytest

from millrace.collector.message import Message
from millrace.collector.unfit import UnfitFolder


def test_a_file_holds_the_whole_message_and_the_reason(tmp_path) -> None:
    folder = UnfitFolder(tmp_path / "spool" / "unfit")
    path = folder.keep(Message(b"\xff\x00body", {"source_id": "shop"}), "INVALID_ARGUMENT: too long")
    content = json.loads(path.read_bytes())
    assert base64.b64decode(content.pop("body")) == b"\xff\x00body"
    assert content == {"why": "INVALID_ARGUMENT: too long", "attributes": {"source_id": "shop"}}
    assert list(path.parent.iterdir()) == [path]


def test_the_same_message_again_is_the_same_file_and_another_is_another(tmp_path) -> None:
    folder = UnfitFolder(tmp_path)
    first = folder.keep(Message(b"body", {"a": "1", "b": "2"}), "so")
    again = folder.keep(Message(b"body", {"b": "2", "a": "1"}), "or so")
    assert first == again
    others = [Message(b"body", {"a": "1"}), Message(b"other", {"a": "1", "b": "2"})]
    assert len({folder.keep(other, "so") for other in others} | {first}) == 3


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        UnfitFolder(tmp_path / "file").keep(Message(b"body", {}), "so")
