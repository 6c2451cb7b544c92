"""Demo: a small shop at /demo, whose page loads the real browser SDKs from this server and from nowhere else."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from millrace.collector.answers import Answer

ROUTE = "/demo"
PAGES = (ROUTE, f"{ROUTE}/", f"{ROUTE}/checkout", f"{ROUTE}/thanks")
"""All of them are one file: going from one to the other is what a page that is being left does to its events."""

_FOLDER = Path(__file__).parent / "shop"
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
}
_HEADERS = (
    (b"cache-control", b"no-cache"),
    # The browser itself sees to it that the page, SDKs included, speaks to no other server.
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
)


def answer(path: str) -> Answer | None:
    """Return the file that a GET or HEAD of path asks for, None where the demo has none."""
    return _answers().get(path) if path.startswith(ROUTE) else None


@cache
def _answers() -> Mapping[str, Answer]:
    """Every answer there is, by path: what is not listed here cannot be asked for, whatever the path says."""
    files = {
        f"{ROUTE}/{file.relative_to(_FOLDER).as_posix()}": Answer(200, _headers(file), file.read_bytes())
        for file in sorted(_FOLDER.rglob("*"))
        if file.suffix in _TYPES
    }
    page = files[f"{ROUTE}/index.html"]
    return files | dict.fromkeys(PAGES, page)


def _headers(file: Path) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"content-type", _TYPES[file.suffix]), *_HEADERS)
