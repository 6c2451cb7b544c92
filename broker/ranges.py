"""Sets of message ids as ranges, both ends included: what is acknowledged mostly has no gaps."""

from collections.abc import Iterable, Sequence


def runs(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges, both ends included, of sorted distinct ids.

    >>> runs([1, 2, 3, 7])
    [(1, 3), (7, 7)]
    """
    breaks = [at for at in range(1, len(ids)) if ids[at] != ids[at - 1] + 1]
    return [(ids[start], ids[end - 1]) for start, end in zip([0, *breaks], [*breaks, len(ids)], strict=True) if ids]


def gaps(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Ranges between rising ids.

    >>> gaps([1, 2, 5, 7])
    [(3, 4), (6, 6)]
    """
    found: list[tuple[int, int]] = []
    before: int | None = None
    for one in ids:
        if before is not None and one > before + 1:
            found.append((before + 1, one - 1))
        before = one
    return found
