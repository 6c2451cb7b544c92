"""The account lookup example, against a service on this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from millrace.config.job import load_job
from millrace.testing import batches_of, check_properties, run_transform, track
from millrace.testing.run import run_over
from millrace.transforms.custom.step import CustomStep
from tests.examples.names import FOLDER, example

USE = "accounts:LookUpAccount"
ACCOUNTS = {"/accounts/ann": {"plan": "pro", "country": "DE"}, "/accounts/bob": {"plan": "free"}}
EVENTS = [
    track("Product Viewed", user="ann", at=0),
    track("Product Viewed", user="bob", at=1),
    track("Product Viewed", user="nobody", at=2),
    track("Product Viewed", anonymous_id="device", at=3),
    track("Product Viewed", user="ann", at=9),
]


class Service(http.server.BaseHTTPRequestHandler):
    """Answers for ACCOUNTS; notes what it is asked."""

    asked: list[tuple[str, str | None]] = []  # noqa: RUF012  shared by all requests
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        account = ACCOUNTS.get(self.path)
        body = json.dumps(account or {}).encode()
        status = 500 if self.path.endswith("/broken") else 200 if account else 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    example(monkeypatch, "accounts")
    monkeypatch.setenv("ACCOUNTS_TOKEN", "token-1")
    Service.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/accounts"
        server.shutdown()
        thread.join()


def test_each_user_is_asked_about_once_and_the_answer_is_in_columns(url: str):
    result = run_transform(USE, EVENTS, settings={"url": url, "token_from": "ACCOUNTS_TOKEN"})
    assert result.column("account_plan") == {"m1": "pro", "m2": "free", "m3": None, "m4": None, "m5": "pro"}
    assert result.column("account_country") == {"m1": "DE", "m2": None, "m3": None, "m4": None, "m5": "DE"}
    assert sorted(Service.asked) == [(f"/accounts/{user}", "Bearer token-1") for user in ("ann", "bob", "nobody")]
    assert "transform_errors" not in [name for row in result.rows for name in row]


def test_an_answer_that_is_an_error_is_flagged(url: str):
    (row,) = run_transform(USE, [track("x", user="broken")], settings={"url": url}).rows
    assert '"error":"HTTPStatusError"' in row["transform_errors"]
    assert "account_plan" not in row


def test_it_has_the_properties_of_a_transform(url: str):
    check_properties(USE, EVENTS, settings={"url": url})


def test_its_section_of_the_configuration(url: str):
    (step,) = load_job(str(FOLDER / "accounts" / "millrace.yaml")).transforms
    assert isinstance(step, CustomStep)
    assert step.limits is not None
    assert step.settings == {"url": "http://localhost:8099/accounts", "token_from": "ACCOUNTS_TOKEN"}
    assert (step.limits.timeout_ms, step.limits.concurrency, step.limits.cache_ttl_s) == (500, 16, 3600)
    step.settings = {**step.settings, "url": url}
    assert run_over(step, batches_of(EVENTS)).column("account_plan")["m1"] == "pro"
