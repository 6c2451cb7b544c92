"""Secrets by reference: `millrace.yaml` and the graph name where a secret is; only the process that needs it looks.

A reference is `env:NAME`, `file:/path` or `gcp-sm:projects/P/secrets/S/versions/V`. It may be shown, logged and
pickled; what it refers to may not: see Secret.
"""

import dataclasses
import importlib
import os
import re
from pathlib import Path
from typing import NoReturn

import yaml

from millrace.config.yaml_page import Page

_REFERENCES = {
    "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
    "file": re.compile(r"/.+"),
    "gcp-sm": re.compile(r"projects/[^/\s]+/secrets/[^/\s]+/versions/[^/\s]+"),
}
_FORMS = "env:NAME, file:/path or gcp-sm:projects/P/secrets/S/versions/V"
_GCP_TIMEOUT_S = 30.0


class SecretError(Exception):
    """A secret cannot be had. One sentence that says what to do, and never holds the secret."""


class Secret:
    """A secret in this process: `reveal` gives it; it shows itself redacted, and cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the secret."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(redacted)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: pickle its reference, and resolve that where it is needed")


@dataclasses.dataclass(frozen=True)
class SecretReference:
    """Where a secret is."""

    kind: str
    """One of env, file, gcp-sm."""
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"

    @classmethod
    def parse(cls, text: str) -> "SecretReference":
        """Read a reference.

        >>> SecretReference.parse("env:MILLRACE_KEY")
        SecretReference(kind='env', place='MILLRACE_KEY')

        Raises:
            ValueError: it is none; the text is not repeated, since it may be the secret itself.
        """
        kind, _, place = text.partition(":")
        form = _REFERENCES.get(kind)
        if form is None or not form.fullmatch(place):
            raise ValueError(f"has to say where the secret is, never the secret itself: {_FORMS}")
        return cls(kind, place)

    def resolve(self) -> Secret:
        """Return the secret, read now; one line's end after it does not count.

        Raises:
            SecretError: it is missing, empty, or may not be read.
        """
        try:
            value = _READ[self.kind](self.place)
        except OSError as error:
            raise SecretError(f"the secret {self} cannot be read: {error.strerror}") from None
        value = value.removesuffix(b"\n").removesuffix(b"\r")
        if not value:
            raise SecretError(f"the secret {self} is empty: give it a value")
        return Secret(value)


def _from_environment(name: str) -> bytes:
    value = os.environ.get(name)
    if value is None:
        raise SecretError(f"the secret env:{name} is missing: set the environment variable {name} where the job runs")
    return os.fsencode(value)


def _from_file(path: str) -> bytes:
    return Path(path).read_bytes()


def _from_secret_manager(name: str) -> bytes:
    from google.api_core.exceptions import GoogleAPICallError  # noqa: PLC0415  loads gRPC: only where it is used
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

    manager = importlib.import_module("google.cloud.secretmanager")  # it is in Beam's own requirements
    try:
        client = manager.SecretManagerServiceClient()
        answer = client.access_secret_version(name=name, timeout=_GCP_TIMEOUT_S)
    except (GoogleAPICallError, GoogleAuthError) as error:
        raise SecretError(
            f"the secret gcp-sm:{name} cannot be read ({type(error).__name__}): does it exist, and has this account "
            "roles/secretmanager.secretAccessor?"
        ) from None
    value: bytes = answer.payload.data
    return value


_READ = {"env": _from_environment, "file": _from_file, "gcp-sm": _from_secret_manager}


def read_reference(page: Page, node: yaml.Node | None, where: str) -> SecretReference | None:
    """Read a reference; no message repeats what stands in its place, since it may be the secret itself."""
    if node is None:
        return None
    try:
        return SecretReference.parse(node.value.strip() if isinstance(node, yaml.ScalarNode) else "")
    except ValueError as error:
        page.wrong(node, f"{where}: {error}")
        return None
