"""Runners: what an option means, and which graphs Prism can run."""

from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.testing import test_stream
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import FixedWindows, Sessions

from millrace.config.job import JobConfig
from millrace.pipelines import events
from millrace.pipelines.options import EventOptions
from millrace.pipelines.runners import Kind, RunnerRefusedError, kind_of, why_not_prism
from millrace.sinks.job_tables import Tables


def test_each_runner_is_what_it_means():
    assert [kind_of(name) for name in (None, "DirectRunner", "PrismRunner")] == [Kind.ONE_NODE] * 3
    assert kind_of("apache_beam.runners.DataflowRunner") is Kind.DATAFLOW
    assert [kind_of(name) for name in ("FlinkRunner", "PortableRunner")] == [Kind.PORTABLE] * 2
    with pytest.raises(RunnerRefusedError, match="InteractiveRunner is refused"):
        kind_of("InteractiveRunner")


_SOON = userstate.TimerSpec("soon", TimeDomain.REAL_TIME)
_END = userstate.TimerSpec("end", TimeDomain.WATERMARK)
_SUM = userstate.CombiningValueStateSpec("sum", VarIntCoder(), sum)
_BAG = userstate.BagStateSpec("bag", VarIntCoder())


class _TimerFn(beam.DoFn):
    def process(self, element: Any, timer: Any = beam.DoFn.TimerParam(_SOON)) -> None: ...  # noqa: B008  Beam's way

    @userstate.on_timer(_SOON)  # type: ignore[untyped-decorator]
    def on_soon(self) -> None: ...


class _CombineFn(beam.DoFn):
    def process(self, element: Any, state: Any = beam.DoFn.StateParam(_SUM)) -> None: ...  # noqa: B008  Beam's way


class _WatermarkTimerFn(beam.DoFn):
    def process(
        self,
        element: Any,
        timer: Any = beam.DoFn.TimerParam(_END),  # noqa: B008  Beam's way
        state: Any = beam.DoFn.StateParam(_BAG),  # noqa: B008  Beam's way
    ) -> None: ...

    @userstate.on_timer(_END)  # type: ignore[untyped-decorator]
    def on_end(self) -> None: ...


def pairs() -> tuple[beam.Pipeline, Any]:
    pipeline = beam.Pipeline()
    return pipeline, pipeline | beam.Create([("a", 1)])


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (beam.ParDo(_TimerFn()), "Outer/It sets a processing-time timer, which Prism does not have"),
        (beam.ParDo(_CombineFn()), "Outer/It uses CombiningValueState, which Prism does not have"),
        (beam.WindowInto(Sessions(10)), "Outer/It uses Beam's session windows, which Prism does not run correctly"),
    ],
)
def test_a_graph_that_prism_cannot_run_is_refused_with_the_label(transform: beam.PTransform, reason: str):
    pipeline, rows = pairs()
    _ = rows | "Outer" >> beam.ptransform_fn(lambda given: given | "It" >> transform)()
    assert why_not_prism(pipeline) == [reason]


def test_exception_handling_and_test_streams_are_refused_with_the_label():
    pipeline, rows = pairs()
    _ = rows | "Careful" >> beam.Map(str).with_exception_handling()
    (reason,) = why_not_prism(pipeline)
    assert reason.startswith("Careful/")
    assert reason.endswith(" uses with_exception_handling, which Prism does not run reliably")
    pipeline = beam.Pipeline()
    _ = pipeline | "Played" >> test_stream.TestStream()
    assert why_not_prism(pipeline) == ["Played is a TestStream, which only Beam's old local runner plays"]


def test_what_prism_can_run_is_accepted_the_real_graph_too(tmp_path: Path):
    pipeline, rows = pairs()
    _ = rows | beam.ParDo(_WatermarkTimerFn())
    _ = rows | beam.WindowInto(FixedWindows(5)) | beam.GroupByKey() | "Lists" >> beam.Map(list)
    assert why_not_prism(pipeline) == []
    pipeline = beam.Pipeline()
    options = EventOptions(["--subscription=projects/my-project/subscriptions/orders"])
    tables = Tables.at(tmp_path)
    events.build(pipeline | "ReadEnvelopes" >> events.read(options, Kind.ONE_NODE), options, JobConfig(), tables)
    assert why_not_prism(pipeline) == []
