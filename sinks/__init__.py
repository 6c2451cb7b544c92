"""Destinations, one per file."""
