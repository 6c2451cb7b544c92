"""Enrichments: what is told of an event beyond what it says of itself; one file an enrichment, each a Step.

They run on ordered batches, in the order in which `enrich:` of `millrace.yaml` lists them.
"""
