"""Tests of users' own transforms."""
