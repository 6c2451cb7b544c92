"""`millrace deliver` with short pauses: `python -m tests.support.quick_delivery ARGUMENT...`; nothing else differs.

Lanes that ended start again after a tenth of a second, and the breaker asks a sink that is down every few milliseconds.
"""

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from millrace.delivery import lane, lane_process, run
from millrace.delivery.throttle import Breaker
from millrace.local import children

PAUSE_S = 0.1
_LANE = "lane"


def _start(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Any:
    assert module == lane_process.__name__
    return children.start(__spec__.name, [_LANE, *arguments], environment)


class _Children:
    start = staticmethod(_start)
    await_end = staticmethod(children.await_end)


def main(arguments: Sequence[str]) -> int:
    """Run it, or (told by the first argument) one lane of it."""
    if arguments[0] == _LANE:
        setattr(lane, "Breaker", functools.partial(Breaker, first_s=0.01, longest_s=0.1))  # noqa: B010
        return lane_process.main(arguments[1:])
    run._LONGEST_PAUSE_S = run._FIRST_PAUSE_S = PAUSE_S
    setattr(run, "children", _Children)  # noqa: B010
    return run.main(arguments)


if __name__ == "__main__":
    _code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(_code)  # as lane_process does
