"""The enrichments, one per file: what is added to ordered events."""
