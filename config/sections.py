"""The names of the sections of `millrace.yaml` beside the sources; the collector knows no more of them."""

SECTIONS: tuple[str, ...] = ("privacy", "contracts", "identity", "enrich", "sessions", "touch", "transforms")
"""The job's: they are in the hash that its rows carry (config/job.py)."""

DELIVERY: tuple[str, ...] = ("sinks", "routes")
"""Those of delivery (config/fanout.py): a change of them changes nothing that is archived."""
