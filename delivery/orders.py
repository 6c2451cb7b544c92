"""Orders: what an operator tells a lane of what failed, carried out on its barrier. Pure, as barrier.py is."""

from collections.abc import Sequence

from millrace.delivery.barrier import Barrier, Pending
from millrace.delivery.records import NOT_FOUND, Mark, Order

_VERBS = {"retry": Mark.WAITING, "skip": Mark.SKIPPED, "park": Mark.PARKED}
_SHOWN = 20


def is_understood(order: Order) -> bool:
    """Say whether an order is one of ours, about something that there may be."""
    return order.verb in _VERBS and _whom(order.subject) is not None


def has_to_wait(order: Order, barrier: Barrier) -> bool:
    """Say whether an order is about an event that is being tried just now; one about all never waits."""
    whom = _whom(order.subject)
    return bool(whom) and barrier.is_under_way(**whom or {})


def try_again(order: Order, barrier: Barrier, back: Sequence[Pending]) -> str:
    """Carry out `retry`; return what came of it.

    Args:
        order: understood.
        barrier: the lane's.
        back: what was parked of it, and is tried again.
    """
    found = barrier.retry(**_whom(order.subject) or {})
    barrier.offer(back)
    if order.subject != "all" and not found and not back:
        return f"{NOT_FOUND}nothing of {order.subject} has failed or is parked"
    return f"{len(found)} tried again now, {len(back)} brought back from parking"


def take_out(order: Order, barrier: Barrier) -> tuple[list[Pending], Mark, str]:
    """Carry out `skip` or `park`; return what is out, as what, and what came of it."""
    whom, mark = _whom(order.subject) or {}, _VERBS[order.verb]
    is_under_way = barrier.is_under_way(**whom)
    found = barrier.skip(**whom)
    if whom and not found:
        return [], mark, f"{NOT_FOUND}nothing of {order.subject} has failed"
    names = ", ".join(each.message_id for each in found[:_SHOWN]) or "none has failed"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    left = "; what is being tried just now was left alone" if is_under_way else ""
    return found, mark, f"{len(found)} {mark.name.lower()}: {names}{more}{left}"


def _whom(subject: str) -> dict[str, str] | None:
    """Return a subject as the barrier's arguments, none of them for `all`; None: it is no subject."""
    if subject == "all":
        return {}
    kind, _, value = subject.partition(":")
    name = {"user": "user_key", "event": "message_id"}.get(kind)
    return None if name is None else {name: value}
