"""From the archive to the sinks: real-time delivery, in the order in which an event meets it.

The archive is the queue: each commit of the Delta log is one part of it, in order, there once, and durable, so a sink
needs no copy of its own, and one that is away for an hour costs nothing but its place in the log. Each pair of a sink
and a kind of order is a lane: a process of its own with its own ledger, so that no sink can hold up another.

    run.py, lane_process.py    `millrace deliver`: a process for each lane
    archive_feed.py            an ordered lane's events: follow.py reads the log, enrol.py makes its parts the queue
    live.py                    the events of one without order: puller.py pulls its subscription, clean.py cleans them
    barrier.py                 which event may go now: the order of each user, with failures (failed.py, retry.py)
    throttle.py                how much at once: adaptive concurrency, circuit breaker, rate
    lane.py, gather.py         the loop that carries events from a feed to a sink, as deliveries
    books.py, ledger.py        what is remembered: the place in the queue, every event's outcome, the operator's orders
    undelivered.py             the table of what a sink never took
    status.py, metrics.py      how the lanes are: `millrace sinks` (sinks_command.py), and for Prometheus
"""
