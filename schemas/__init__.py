"""What records look like: Avro is the source of truth, Arrow and msgspec follow.

Imports neither Beam nor a client library.
"""
