"""Links by the rule as docs/guarantees.md has it, one after the other: what the stages must say too."""

from collections.abc import Iterable

from millrace.transforms.link import ALIAS, Link

Asked = tuple[int, str]
"""When an event was released, µs; and its own id."""


def keys_by_the_book(links: Iterable[Link], asked: Iterable[Asked]) -> dict[Asked, str]:
    """Return whose sequence each of the events belongs to, if nothing is ever forgotten."""
    keys: dict[str, str] = {}
    found: dict[Asked, str] = {}
    steps: list[tuple[int, int, Link | Asked]] = [(link.at_us, 0, link) for link in links]
    steps += [(event[0], 1, event) for event in asked]
    for _, _, step in sorted(steps):
        if isinstance(step, Link):
            if step.user_id in keys:
                key = keys[step.user_id]
            elif step.kind == ALIAS or step.id not in keys:
                key = keys.get(step.id, step.id)
            else:
                key = step.user_id
            keys[step.id] = key
            keys.setdefault(step.user_id, key)
        else:
            found[step] = keys.get(step[1], step[1])
    return found
