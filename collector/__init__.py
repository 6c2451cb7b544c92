"""Capture and deliver: HTTP in, Pub/Sub out; 200 only when the events are durable."""
