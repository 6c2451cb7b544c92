"""Configuration: `millrace.yaml`, read with the line of every mistake."""
