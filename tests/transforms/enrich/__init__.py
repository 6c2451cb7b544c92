"""Tests of the enrichments."""
