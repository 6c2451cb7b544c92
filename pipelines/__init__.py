"""Wiring: options, and the graphs."""
