"""The same job by other means: one script a system, each prints one JSON line."""
