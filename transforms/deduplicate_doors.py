"""Deduplicate's doors: what a batch became leaves by them, and is counted."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from millrace.transforms.copies import Remembering
from millrace.transforms.counts import count

STAGE = "deduplicate"

_LOG = logging.getLogger(__name__)


def doors(done: Remembering, max_ids: int) -> Iterator[Any]:
    """Yield what leaves, by its door; count it, and what was forgotten early."""
    unique = done.unique
    if done.forgotten:
        _say_that_the_horizon_is_shorter(max_ids)
        count(STAGE, "forgotten_early", done.forgotten)
    count(STAGE, "events_out", unique.batch.num_rows)
    count(STAGE, "duplicates", unique.duplicates.num_rows)
    count(STAGE, "synthetic", unique.synthetic)
    count(STAGE, "repeats", unique.repeats)
    if unique.batch.num_rows:
        yield unique.batch
    if unique.duplicates.num_rows:
        yield beam.pvalue.TaggedOutput("duplicates", unique.duplicates)


@functools.cache  # once
def _say_that_the_horizon_is_shorter(max_ids: int) -> None:
    _LOG.warning(
        "more than %d events in --dedup_horizon_s: the oldest are forgotten early, and their copies are kept; "
        "raise --dedup_max_ids (16 bytes each) or lower the horizon",
        max_ids,
    )
