"""Runners: which one an option means, what it promises, and why a graph may not run on Prism."""

import enum
from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import Sessions


class Kind(enum.Enum):
    """Who runs the graph, as far as promises go."""

    ONE_NODE = "Prism, in one process with the reader and the committer"
    DATAFLOW = "Dataflow"
    PORTABLE = "a portable runner with checkpoints"


PROMISES = {
    Kind.ONE_NODE: "at least once from Pub/Sub, exactly once in the archive: a message is acknowledged after the "
    "commit that holds its events, and redelivered ones are recognised for --commit_horizon_s",
    Kind.DATAFLOW: "at least once from Pub/Sub, exactly once through Dataflow, one commit a window. Drain, do not "
    "cancel: what the job holds was acknowledged to Pub/Sub",
    Kind.PORTABLE: "at least once: a message is acknowledged one checkpoint after the one that holds it; after a "
    "restore a window may be committed again. Checkpointing must be on, or nothing is acknowledged",
}

_ONE_NODE = {"", "DirectRunner", "SwitchingDirectRunner", "PrismRunner"}
_DATAFLOW = {"DataflowRunner", "TestDataflowRunner"}
_PORTABLE = {"PortableRunner", "FlinkRunner", "SparkRunner"}
_REFUSED = {
    "BundleBasedDirectRunner": "it acknowledges messages before it processes them, so a crash loses events",
    "FnApiRunner": "it is for batches: a stream's windows never end there",
    "InteractiveRunner": "it runs on Beam's old local runner, which acknowledges messages before it processes them",
}


class RunnerRefusedError(Exception):
    """The job must not run there; the message says why, in one line."""


def kind_of(runner: str | None) -> Kind:
    """Return what an option `--runner` means; DirectRunner is Prism, as Beam 2.77 has it for streams.

    Raises:
        RunnerRefusedError: events would be lost there, or the name is unknown.
    """
    name = (runner or "").rpartition(".")[2]
    if name in _ONE_NODE:
        return Kind.ONE_NODE
    if name in _DATAFLOW:
        return Kind.DATAFLOW
    if name in _PORTABLE:
        return Kind.PORTABLE
    if name in _REFUSED:
        raise RunnerRefusedError(f"--runner={name} is refused: {_REFUSED[name]}. Use DirectRunner (Prism).")
    known = ", ".join(sorted((_ONE_NODE | _DATAFLOW | _PORTABLE) - {"", "SwitchingDirectRunner", "TestDataflowRunner"}))
    raise RunnerRefusedError(f"--runner={name} is not known; use one of {known}.")


def why_not_prism(pipeline: beam.Pipeline) -> list[str]:
    """Return why this graph cannot run on Prism, a line for each transform; empty where it can.

    Beam's DirectRunner would silently use its old bundle runner instead, which acknowledges messages before it has
    processed them. The reasons are those of its `_PrismRunnerSupportVisitor`, 2.77.
    """
    visitor = _PrismVisitor()
    pipeline.visit(visitor)
    return visitor.reasons


class _PrismVisitor(PipelineVisitor):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        transform = transform_node.transform
        for reason in _reasons(transform):
            self.reasons.append(f"{transform_node.full_label} {reason}")


def _reasons(transform: Any) -> list[str]:
    if isinstance(transform, TestStream):
        return ["is a TestStream, which only Beam's old local runner plays"]
    if isinstance(transform, beam.WindowInto) and isinstance(transform.get_windowing("").windowfn, Sessions):
        return ["uses Beam's session windows, which Prism does not run correctly"]
    if not isinstance(transform, beam.ParDo):
        return []
    reasons = []
    dofn = transform.dofn
    if isinstance(dofn, beam.transforms.core._ExceptionHandlingWrapperDoFn):  # noqa: SLF001  Beam gives it no other name
        reasons.append("uses with_exception_handling, which Prism does not run reliably")
    if userstate.is_stateful_dofn(dofn):
        states, timers = userstate.get_dofn_specs(dofn)
        if any(timer.time_domain == TimeDomain.REAL_TIME for timer in timers):
            reasons.append("sets a processing-time timer, which Prism does not have")
        if any(isinstance(state, userstate.CombiningValueStateSpec) for state in states):
            reasons.append("uses CombiningValueState, which Prism does not have")
    return reasons
