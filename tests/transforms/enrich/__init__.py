"""Tests of millrace.transforms.enrich."""
