"""Tests of what the archive stores, and how."""
