"""The `millrace` command: it finds its sub-commands, and Ctrl-C is no crash."""

import importlib

import pytest

from millrace import cli
from millrace.sinks import compact


def test_every_command_has_a_main_of_its_own():
    for module, text in cli.COMMANDS.values():
        assert callable(importlib.import_module(module).main)
        assert text


def test_ctrl_c_where_a_command_does_not_expect_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(compact, "main", interrupted)
    assert cli.main(["compact", "somewhere"]) == 130
    assert capsys.readouterr() == ("", "millrace compact: ended by Ctrl-C.\n")
