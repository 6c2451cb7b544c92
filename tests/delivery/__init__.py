"""Tests of delivery: from the archive to the sinks."""
