"""What docs tell those who receive webhooks is true: the check by hand, and the table of settings."""

import base64
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest

from millrace.sinks.signature import key_of, request_id, signatures
from millrace.sinks.webhook import Webhook
from tests.support.webhooks import SECRET

PAGE = (Path(__file__).parents[2] / "docs" / "sinks" / "webhook.md").read_text()


def _is_ours(headers: dict[str, str], body: bytes, secret: bytes) -> bool:
    (code,) = re.findall(r"```python\n(.*?def is_ours.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  the page's own
    found: bool = names["is_ours"](headers, body, secret)
    return found


@pytest.mark.parametrize("secret", [SECRET.encode(), b"any bytes, sixteen and more"])
def test_a_receiver_checks_a_signature_as_the_page_says(secret: bytes):
    body, now_s, name = b'[{"message_id":"m-1"}]', int(time.time()), request_id(["m-1"])
    known = base64.b64decode(secret.removeprefix(b"whsec_")) if secret.startswith(b"whsec_") else secret

    def headers(sent_s: int) -> dict[str, str]:
        signed = signatures([b"the other secret", key_of(secret)], name, sent_s, body)
        return {"webhook-id": name, "webhook-timestamp": str(sent_s), "webhook-signature": signed}

    assert _is_ours(headers(now_s), body, known)
    assert not _is_ours(headers(now_s), body + b" ", known)
    assert not _is_ours(headers(now_s), body, known + b"x")
    assert not _is_ours(headers(now_s) | {"webhook-id": "m-2"}, body, known)
    assert not _is_ours(headers(now_s - 301), body, known)


def test_the_page_lists_every_setting():
    section = PAGE.partition("def is_ours")[0].rpartition("use: webhook")[2]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(each.name for each in dataclasses.fields(Webhook) if each.init)
