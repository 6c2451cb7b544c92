"""Journal: which envelopes the sample traffic published, and how many events each, so that the accounts can be closed.

A line is written when the broker has acknowledged its message. What the broker took without our learning of it (it was
killed before it answered) has no line: such envelopes are another publisher's, as far as the accounts go.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from google.pubsub_v1.types import PublishResponse

from millrace.local.publish import Request

HEADER = "envelope_id,events\n"

_read = type(PublishResponse.pb(PublishResponse())).FromString


class Journal:
    """A CSV file that grows by a line for each published message; a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a", encoding="ascii")
        if not self._file.tell():
            self._file.write(HEADER)
            self._file.flush()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    def record(self, request: Request, answer: bytes) -> None:
        """Enter the messages of a request that was answered; its tag is what they hold, one `Sent` each."""
        ids = _read(answer).message_ids
        lines = (f"{id_},{sent.events}\n" for id_, sent in zip(ids, request.tag, strict=True))
        self._file.write("".join(lines))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
