"""The embedded Pub/Sub, for a laptop, a single node and tests."""
