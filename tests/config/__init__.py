"""Tests of millrace.config."""
