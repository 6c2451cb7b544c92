"""The stages, one per file, in the order an event meets them.

read, decode, protect, validate, deduplicate, order (with link and resolve inside), then steps: enrich and custom.
"""
