"""The SDKs that people already use, unmodified, from their call to the row."""
