"""From the archive to the sinks: real-time delivery, in the order in which an event meets it.

The archive is the queue: each commit of the Delta log is one part of it, in order, there once, and durable, so a sink
needs no copy of its own, and one that is away for an hour costs nothing but its place in the log. Each pair of a sink
and a kind of order is a lane: a process of its own with its own ledger, so that no sink can hold up another.

    follow.py     archive -> parts of the queue, each in delivery order
    live.py       subscription -> events as they come, for routes without order (puller.py, clean.py, messages.py)
    barrier.py    which event may go now: the order of each user, with failures (pending.py: an event; failed.py: those
                  that are tried again)
    retry.py      when an event is tried again, and when no more
    throttle.py   how much at once: adaptive concurrency, circuit breaker, rate limit
    ledger.py     what is remembered: the place in the queue, every event's outcome, orders of the operator
    lane.py       the loop that carries events from one to the other
    run.py        `millrace deliver`: a process for each lane
"""
