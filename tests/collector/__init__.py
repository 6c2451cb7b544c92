"""Tests of the embedded Pub/Sub."""
