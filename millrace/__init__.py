"""Millrace carries customer events from Pub/Sub to Parquet, each user's in their true order."""

__version__ = "0.1.0"
