"""Tests of `millrace.yaml`."""
