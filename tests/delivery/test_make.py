"""Making sinks: by a built-in name or module:Name, with values as their types want them."""

import subprocess
import sys

import pytest

from millrace.delivery.make import BUILT_IN, NoSinkError, make_sink, sink_class
from millrace.delivery.settings import SinkSettings
from millrace.sinks.console import Console
from tests.support import sinks
from tests.support.sinks import Auth, Kept

MODULE = "tests.support.sinks"


def test_a_built_in_sink_is_named_by_one_word():
    assert make_sink(SinkSettings("out", "console")) == Console()
    assert sink_class("console") is Console
    assert list(BUILT_IN) == ["console", "files", "webhook", "pubsub", "kafka", "postgres", "redis", "bigquery"]


def test_what_with_gives_becomes_what_the_class_wants():
    given = {"url": "https://a.example", "timeout_s": 3, "topics": ["a", "b"], "auth": {"user": "ann"}}
    assert make_sink(SinkSettings("own", f"{MODULE}:Kept", given)) == Kept(
        "https://a.example", 3.0, ("a", "b"), Auth("ann")
    )


@pytest.mark.parametrize(
    ("use", "given", "problem"),
    [
        ("consol", {}, f"there is no sink 'consol'; there are: {', '.join(BUILT_IN)}, or your own, as module:Name"),
        ("nowhere:Sink", {}, "there is no module 'nowhere'; install its package, or start where the file is"),
        (f"{MODULE}:Keep", {}, f"{MODULE} has no 'Keep'; it has Auth, Kept, Picky, "),
        (f"{MODULE}:not_a_sink", {}, f"{MODULE}:not_a_sink is no sink; derive a class from millrace.sinks.sink.Sink"),
        (f"{MODULE}:Auth", {}, f"{MODULE}:Auth is no sink; derive a class from millrace.sinks.sink.Sink"),
        (f"{MODULE}:Kept", {"url": "x"}, "Kept refuses its settings: url has to begin with https://, not 'x'"),
        (f"{MODULE}:Kept", {"url": 3}, "Kept refuses its settings: Expected `str`, got `int`"),
        (f"{MODULE}:Kept", {"url": "https://a", "timeout_s": 61}, "Kept refuses its settings: KeyError: 61.0"),
        (f"{MODULE}:Unfinished", {}, "Unfinished refuses its settings: TypeError: Can't instantiate abstract class"),
    ],
)
def test_a_sink_that_cannot_be_made_says_why(use: str, given: dict[str, object], problem: str):
    with pytest.raises(NoSinkError) as caught:
        make_sink(SinkSettings("own", use, given))
    assert str(caught.value).startswith(problem)


def test_what_a_lane_imports_has_no_beam():
    modules = "millrace.config.fanout, millrace.delivery.make, millrace.transforms.route, millrace.sinks.json_rows"
    code = f"import sys, {modules}; print([name for name in sys.modules if name.startswith('apache_beam')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
    assert sinks.__name__ == MODULE
