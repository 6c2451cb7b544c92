"""The shared watermark, against a runner that believes whichever reader spoke last, as Prism does."""

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.transforms.watermark import END, SharedWatermark

READERS = 3
SLACK_US = 5

steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 20)),
        st.tuples(st.sampled_from(["begin", "take", "end", "deliver"]), st.integers(0, READERS - 1)),
    ),
    min_size=20,
    max_size=120,
)


class Runner:
    """Readers take from one queue in bundles; the runner sees a bundle's elements and report a while after it ended."""

    def __init__(self) -> None:
        self.watermark = SharedWatermark(SLACK_US)
        self.now_us = 1_000
        self.queue: list[int] = []
        self.newest_taken_us = 0
        self.open: dict[int, list[int]] = {}  # arrivals of bundles that run
        self.ended: dict[int, tuple[list[int], int]] = {}  # bundles that ended, which the runner has not seen
        self.believed_us = 0
        self.over = False

    def unread_us(self) -> int:
        return min(self.queue, default=self.newest_taken_us)

    def step(self, what: str, value: int) -> None:
        if what == "publish" and not self.over:
            self.now_us += value
            # Not quite in order; now and then an old one comes again.
            self.queue.append(self.now_us - 3 * (value % 4) if value != 20 else 900)
        elif what == "begin" and value not in self.open and value not in self.ended:
            self.open[value] = []
            self.watermark.begin(value, self.unread_us(), ended=self.over and not self.queue)
        elif what == "take" and value in self.open and self.queue:
            floor_us = self.watermark.arrival_floor(self.unread_us())
            published_us = self.queue.pop(0)
            self.newest_taken_us = max(self.newest_taken_us, published_us)
            self.open[value].append(max(published_us, floor_us))
        elif what == "end" and value in self.open:
            report = self.watermark.report(value, self.unread_us(), ended=self.over and not self.queue)
            self.ended[value] = (self.open.pop(value), report)
        elif what == "deliver" and value in self.ended:
            arrivals, report = self.ended.pop(value)
            assert all(arrival >= self.believed_us for arrival in arrivals), "an element is late: it would be dropped"
            self.believed_us = max(self.believed_us, report)


@settings(max_examples=400)
@given(steps=steps)
def test_nothing_that_is_read_is_ever_late_for_the_runner(steps):
    runner = Runner()
    for what, value in steps:
        runner.step(what, value)


@given(steps=steps)
def test_once_all_is_read_the_end_comes_after_two_rounds_of_bundles_and_not_before(steps):
    runner = Runner()
    for what, value in steps:
        runner.step(what, value)
    runner.over = True
    rounds = 0
    while runner.believed_us < END:
        rounds += 1
        assert rounds < 5
        for reader in range(READERS):
            for what in ("deliver", "end", "deliver", "begin", *["take"] * 120, "end", "deliver"):
                assert runner.believed_us < END or not (runner.queue or any(runner.open.values()))
                runner.step(what, reader)


def test_the_watermark_moves_on_while_readers_take_turns():
    watermark = SharedWatermark(SLACK_US)
    reports = []
    for unread_us in range(100, 200, 10):
        for reader in range(2):
            watermark.begin(reader, unread_us, ended=False)
        reports.append(watermark.report(0, unread_us, ended=False))
    assert reports == [unread_us - SLACK_US for unread_us in range(100, 200, 10)]
