"""The sample traffic of a local run: the shop's devices over plain HTTP, its servers by the real SDKs."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from millrace.local import children
from millrace.local.calls import Answer, ShopCalls, is_kept
from millrace.local.journal import Journal, records_of
from millrace.local.pace import Paced
from millrace.local.parts import CannotRunError, Part, Parts
from millrace.local.post import Poster
from millrace.local.send import Request
from millrace.local.shop import Shop
from millrace.local.sources import APP, SERVER, WEB, make_sources

_SDKS = ("rudderstack", "segment")
_GRACE_S = 15.0
_ANSWER_S = 5.0
"""For the last answers, after which a request counts as unanswered."""


def check_sdks() -> None:
    """Raise CannotRunError where the SDKs are not installed."""
    missing = [name for name in _SDKS if find_spec(name) is None]
    if missing:
        raise CannotRunError("the sample traffic needs the SDKs: pip install 'millrace[local]', or say --no-demo")


class Sample:
    """What was sent so far."""

    def __init__(self, journal: Journal) -> None:
        self.refused: Counter[int] = Counter()
        """Requests that were told that nothing is kept, by status: bodies that are broken as a whole."""
        self._journal = journal

    def enter(self, request: Request, answer: Answer) -> None:
        """Take an answer."""
        if is_kept(answer):
            self._journal.answered(records_of(request.tag))
        else:
            self.refused[answer.status] += request.events

    def give_up(self, request: Request, _answer: None) -> None:
        """Take note that there will be no answer."""
        self._journal.given_up(records_of(request.tag))


@contextlib.contextmanager
def sample_traffic(url: str, data: Path, rate: float, *, parts: Parts, say: Callable[[str], None]) -> Iterator[Paced]:
    """Send to the collector at url while the caller goes on, and note in data/journal.csv what it answered.

    What is yielded is over when the collector has refused for good.

    Raises:
        SendError: at the end: the collector refused good events.
    """
    keys = make_sources(data)
    by_source = {"web": keys[WEB], "android": keys[APP], "ios": keys[APP], "tills": keys[SERVER]}
    with Journal(data / "journal.csv") as journal:
        sample = Sample(journal)
        poster = Poster(url, on_answered=sample.enter, on_given_up=sample.give_up)
        paced = Paced(ShopCalls(Shop(seed=time.time_ns()), by_source), poster, rate)
        process = children.start("millrace.local.sdks", [f"--url={url}", f"--data={data}"], os.environ)
        paced.start()
        try:
            early = -signal.SIGTERM  # it was told to end while it started: it has sent nothing
            with parts.running(Part("SDKs' process", process), _GRACE_S, ends_well=(0, early)):
                yield paced
        finally:
            counts = paced.stop(_ANSWER_S)
            refused = sample.refused.total()
            told = f", {refused:,} of them broken and refused" if refused else ""
            say(f"The sample traffic has ended: {counts.events:,} events sent{told}.")
