"""The names of the job's sections in `millrace.yaml`: the collector knows that they are there, and no more."""

SECTIONS: tuple[str, ...] = ("privacy", "contracts", "identity", "enrich", "sessions", "touch", "transforms")
