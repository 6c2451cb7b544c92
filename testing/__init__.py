"""The test kit for transforms of your own: a pytest plugin, builders of events, golden files, property checks."""
