"""Settings routes: what SDKs ask for before they send."""

import pytest

from tests.support.asking import BROWSER_KEY, SERVER_KEY, SHOP, TRACKS_KEY, ask, basic, header, request, told

QUERY = f"p=npm&v=3.34.1&build=modern&writeKey={BROWSER_KEY}&lockIntegrationsVersion=true".encode()
EVIL = {"origin": b"https://evil.example"}
PAGE = {"authorization": None, "content_type": None, "origin": SHOP.encode()}


@pytest.mark.parametrize("path", ["/sourceConfig", "/sourceConfig/", "//sourceConfig//"])
def test_rudderstacks_sdks_are_told_of_a_source_without_destinations(path: str) -> None:
    outcome = ask(request("GET", path, b"", QUERY, **PAGE))
    assert outcome.answer.status == 200
    assert told(outcome) == {
        "source": {
            "id": "shop",
            "name": "Shop",
            "enabled": True,
            "workspaceId": "millrace",
            "config": {"statsCollection": {"errors": {"enabled": False}, "metrics": {"enabled": False}}},
            "destinations": [],
            "connections": [],
            "dataplanes": {},
        }
    }
    assert header(outcome, b"access-control-allow-origin") == SHOP.encode()
    assert header(outcome, b"cache-control") == b"private, max-age=60"
    assert (outcome.route, outcome.messages) == ("/sourceConfig", ())


def test_mobile_sdks_show_their_key_as_a_user_name() -> None:
    outcome = ask(request("GET", "/sourceConfig", b"", b"p=android", authorization=basic(TRACKS_KEY)))
    assert told(outcome)["source"]["id"] == "app"


def test_the_search_for_ad_blockers_needs_no_key() -> None:
    outcome = ask(request("HEAD", "/sourceConfig/", b"", b"view=ad", **PAGE))
    assert (outcome.answer.status, outcome.answer.body) == (200, b"")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_segments_sdks_are_told_to_send_here_and_to_load_nothing(method: str) -> None:
    asked = request(method, f"/v1/projects/{BROWSER_KEY}/settings", b"", **PAGE, host=b"localhost:8080")
    outcome = ask(asked._replace(scheme="http"))
    assert (outcome.answer.status, outcome.route) == (200, "/v1/projects/{key}/settings")
    assert told(outcome) == {
        "integrations": {"Segment.io": {"apiKey": BROWSER_KEY, "apiHost": "localhost:8080/v1", "protocol": "http"}},
        "metrics": {"sampleRate": 0},
    }


@pytest.mark.parametrize("host", [None, b"", b"a b", b'a"b', b"a/b", b"x" * 256, "ü".encode()])
def test_a_host_that_is_none_is_not_told(host: bytes | None) -> None:
    outcome = ask(request("GET", f"/v1/projects/{BROWSER_KEY}/settings", b"", **PAGE, host=host))
    assert (outcome.answer.status, told(outcome)["code"]) == (400, "bad_host")


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/sourceConfig", {"authorization": None}, 401, "no_key"),
        ("/sourceConfig", {"authorization": basic("mrb_wrong")}, 401, "unknown_key"),
        ("/sourceConfig", {"authorization": basic(SERVER_KEY)}, 401, "unknown_key"),
        (
            "/sourceConfig",
            EVIL | {"authorization": basic(BROWSER_KEY)},
            403,
            "origin_not_allowed",
        ),
        ("/v1/projects/mrb_wrong/settings", {}, 404, "unknown_project"),
        (f"/v1/projects/{SERVER_KEY}/settings", {}, 404, "unknown_project"),
        (f"/v1/projects/{BROWSER_KEY}/settings", EVIL, 403, "origin_not_allowed"),
    ],
)
def test_settings_are_for_the_sources_own_pages(path: str, headers, status: int, code: str) -> None:
    outcome = ask(request("GET", path, b"", **headers))
    assert (outcome.answer.status, told(outcome)["code"]) == (status, code)
