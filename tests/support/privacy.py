"""Builders for the tests of privacy: settings from the text of their section, and keys of known secrets."""

import textwrap
from collections.abc import Sequence

import pytest

from millrace.config.job import read_job
from millrace.config.privacy import Privacy
from millrace.config.secrets import Secret
from millrace.transforms.policies import Keys
from millrace.transforms.protection import Protection

SECRETS = {"v1": "the first secret, long ago", "v2": "the second secret, now"}
RING = "keys: [{version: v2, secret: env:MILLRACE_TEST_V2}, {version: v1, secret: env:MILLRACE_TEST_V1}]"


def keys(*versions: str) -> Keys:
    """Return the keys of these versions, newest first; without any, v2 and v1."""
    return Keys([(version, Secret(SECRETS[version].encode())) for version in versions or ("v2", "v1")])


def settings(fields: Sequence[str] = (), more: str = "") -> Privacy:
    """Return settings with the keys of SECRETS; fields: rules, as `field: ..., policy: ...`."""
    rules = "\n".join(f"    - {{{each}}}" for each in fields)
    text = f"privacy:\n  {RING}\n" + (f"  fields:\n{rules}\n" if fields else "") + textwrap.indent(more, "  ")
    found = read_job(text, "F").privacy
    assert found is not None
    return found


def set_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put SECRETS where RING says that they are."""
    for version, secret in SECRETS.items():
        monkeypatch.setenv(f"MILLRACE_TEST_{version.upper()}", secret)


def protection(fields: Sequence[str] = (), more: str = "") -> Protection:
    """Return the protection of some rules; needs set_secrets."""
    return Protection(settings(fields, more))
