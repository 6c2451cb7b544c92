"""What Beam gets wrong, and that it is mended wherever our source is read."""

import math

from apache_beam.io.iobase import RestrictionProgress
from apache_beam.runners.worker.bundle_processor import DataInputOperation

from millrace.transforms import read

assert read  # what a worker that reads imports


def test_a_split_while_the_first_element_is_not_yet_measured_is_answered():
    progress = RestrictionProgress(completed=0.0, remaining=1.0).with_completed(math.nan)
    assert progress.fraction_completed == 0.0
    asked: list[float] = []
    split = DataInputOperation._compute_split(0, progress.fraction_completed, math.inf, 0.5, 1, try_split=asked.append)
    assert (split, asked) == ((0, [], [], 1), [0.5])


def test_measured_work_counts_as_it_is():
    assert RestrictionProgress(completed=0.0, remaining=1.0).with_completed(3).fraction_completed == 0.75
