"""Tests of millrace.local."""
