"""Builders, fakes and servers for the tests."""
