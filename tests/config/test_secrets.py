"""Secrets: named by reference, resolved where they are used, and shown nowhere."""

import importlib
import pickle
import types
from pathlib import Path
from typing import Any

import pytest
from google.api_core.exceptions import NotFound

from millrace.config.secrets import Secret, SecretError, SecretReference

NAME = "projects/p/secrets/s/versions/3"


@pytest.mark.parametrize("text", ["env:KEY_1", "file:/run/secrets/key", f"gcp-sm:{NAME}"])
def test_a_reference_is_shown_as_it_is_written(text: str):
    assert str(SecretReference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["hunter2", "", "env:", "env:1X", "env:A B", "file:secrets/key", "file:", "gcp-sm:projects/p/secrets/s", "vault:x",
     "ENV:KEY", "gcp-sm:projects/p/secrets/s/versions/"],
)  # fmt: skip
def test_what_is_no_reference_is_refused_without_being_repeated(text: str):
    with pytest.raises(ValueError, match="never the secret itself: env:NAME") as caught:
        SecretReference.parse(text)
    assert text.rstrip(":") in ("", "env", "file") or text not in str(caught.value)


def test_an_environment_variable_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    reference = SecretReference.parse("env:MILLRACE_TEST_KEY")
    monkeypatch.delenv("MILLRACE_TEST_KEY", raising=False)
    with pytest.raises(SecretError, match="set the environment variable MILLRACE_TEST_KEY where the job runs"):
        reference.resolve()
    monkeypatch.setenv("MILLRACE_TEST_KEY", "hunter2")
    assert reference.resolve().reveal() == b"hunter2"
    monkeypatch.setenv("MILLRACE_TEST_KEY", "")
    with pytest.raises(SecretError, match="is empty"):
        reference.resolve()


def test_a_file_is_read_without_the_end_of_its_line(tmp_path: Path):
    file = tmp_path / "key"
    reference = SecretReference.parse(f"file:{file}")
    with pytest.raises(SecretError, match=f"the secret file:{file} cannot be read: No such file"):
        reference.resolve()
    for written, read in ((b"a b\n", b"a b"), (b"a\r\n", b"a"), (b"\x00\xff", b"\x00\xff")):
        file.write_bytes(written)
        assert reference.resolve().reveal() == read


def test_google_s_secret_manager_is_asked_for_the_version(monkeypatch: pytest.MonkeyPatch):
    secretmanager = importlib.import_module("google.cloud.secretmanager")
    asked: list[str] = []
    not_found: Any = NotFound

    class Client:
        def access_secret_version(self, *, name: str, timeout: float) -> Any:
            assert timeout > 0
            asked.append(name)
            if name.endswith("/4"):
                raise not_found("hunter2")
            return types.SimpleNamespace(payload=types.SimpleNamespace(data=b"hunter2"))

    monkeypatch.setattr(secretmanager, "SecretManagerServiceClient", Client)
    assert SecretReference.parse(f"gcp-sm:{NAME}").resolve().reveal() == b"hunter2"
    with pytest.raises(SecretError, match=r"roles/secretmanager\.secretAccessor") as caught:
        SecretReference.parse("gcp-sm:projects/p/secrets/s/versions/4").resolve()
    assert "hunter2" not in str(caught.value)
    assert asked == [NAME, "projects/p/secrets/s/versions/4"]


def test_a_secret_shows_nothing_and_is_not_pickled():
    secret = Secret(b"hunter2")
    assert repr(secret) == str(secret) == f"{secret}" == "Secret(redacted)"
    with pytest.raises(TypeError, match="pickle its reference") as caught:
        pickle.dumps(secret)
    assert "hunter2" not in str(caught.value)
