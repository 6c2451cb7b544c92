"""The stages, one per file, in the order an event meets them: read, decode, order."""
