"""What Beam 2.77 gets wrong in a worker that reads `PubSubSource`, mended when this module is imported."""

import math

from apache_beam.io.iobase import RestrictionProgress

_with_completed = RestrictionProgress.with_completed


def _with_known_work(progress: RestrictionProgress, completed: float) -> RestrictionProgress:
    """Take work that is not yet known for none.

    Beam estimates the work done as (elements put out) x (mean bytes of one). While the stages that are fused to the
    read hold the first element of a bundle, it is counted and not yet measured: 1 x NaN. A runner that asks for a split
    just then gets a ValueError, and Prism fails the job (seen under load: "cannot convert float NaN to integer").
    """
    fixed: RestrictionProgress = _with_completed(progress, 0.0 if math.isnan(completed) else completed)
    return fixed


RestrictionProgress.with_completed = _with_known_work
