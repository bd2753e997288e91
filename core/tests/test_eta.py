"""When work ends, by a clock of the test's own: nothing here takes time."""

from __future__ import annotations

import itertools
import math

import pytest

from vitutor_core import progress
from vitutor_core.jobs.reproduce import in_turn
from vitutor_core.progress import Eta, RunProgress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def reports(streams: int, epochs: int, start: float, epoch: float, *, jitter: float = 0.0):
    """When each unit is done: ``streams`` jobs at a time, each of so many epochs after ``start`` seconds of imports."""
    waves, moments = 2, []
    for wave, stream in itertools.product(range(waves), range(streams)):
        begun = wave * (start + epochs * epoch)
        late = jitter * ((stream * 7 + wave * 3) % 5 - 2)
        moments += [begun + start + epoch * number + late for number in range(1, epochs + 1)]
    return sorted(moments)


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(("start", "epoch", "jitter"), [(0, 10, 0), (60, 10, 0), (60, 10, 0.4), (200, 1, 0.1)])
def test_it_is_right_within_a_fifth_from_a_few_per_cent_on(clock, streams, start, epoch, jitter):
    moments = reports(streams, 100, start, epoch, jitter=jitter)
    total, begun = len(moments), clock.now
    # The start of the second wave is not known beforehand; it is counted as the first one's is.
    end = moments[-1] - start
    found, said = Eta(total, streams=streams), []
    for number, moment in enumerate(moments, start=1):
        clock.now = begun + moment
        found.update(number)
        left = found.left_s()
        said.append(left)
        if number >= max(2 * streams, total * 0.03) and number < total / 2:
            truth = end - moment
            assert left == pytest.approx(truth, rel=0.2), (number, total)
    assert said[0] is None
    assert str(found) == "0 s left"


@pytest.mark.parametrize(("jobs", "side_by_side"), [(3, 2), (5, 2), (4, 4), (7, 4)])
def test_jobs_that_do_not_end_together(clock, jobs, side_by_side):
    """Ten epochs of 10 seconds each: where a last job is alone, time does not run out before it is done."""
    begun, end, left = clock.now, 100 * math.ceil(jobs / side_by_side), [10] * jobs
    total = in_turn(left, side_by_side)
    found = Eta(total)
    for moment in range(10, end + 1, 10):
        clock.now = begun + moment
        wave = (moment - 1) // 100
        for job in range(jobs)[wave * side_by_side : (wave + 1) * side_by_side]:
            left[job] -= 1
            found.update(total - in_turn(left, side_by_side))
        if moment > 20:
            assert found.left_s() == pytest.approx(end - moment, abs=1)
    assert left == [0] * jobs


def test_before_the_first_reports_nobody_knows(clock):
    found = Eta(30, streams=3)
    assert str(found) == "estimating"
    clock.now += 250  # as long as imports and the first epoch take
    for done in (0, 1, 2, 3):
        found.update(done)
        assert str(found) == "estimating"
    for done in (4, 5, 6):
        clock.now += 10 / 3
        found.update(done)
    assert found.left_s() == pytest.approx(24 * 10 / 3, rel=0.5)


def test_jobs_that_report_several_epochs_at_about_the_same_time(clock):
    found, done = Eta(50, streams=3), 0
    for begins, late in itertools.product((160, 320), (0, 0.4, 1.1)):
        clock.now = 1000 + begins + late
        found.update(done := done + 2)
        if begins == 160:
            assert str(found) == "estimating"  # 2 epochs in 0.4 s are no rate
    assert found.left_s() == pytest.approx(38 / 6 * 160, rel=0.2)


def test_what_was_there_before_does_not_count(clock):
    found = Eta(100, 50)
    for done in range(50, 56):
        found.update(done)
        clock.now += 4
    assert found.left_s() == pytest.approx(45 * 4 - 4)
    clock.now += 10
    assert found.left_s() == pytest.approx(45 * 4 - 14)
    clock.now += 10_000
    assert str(found) == "0 s left"


def test_reports_at_one_moment_are_no_rate(clock):
    found = Eta(10)
    for done in range(1, 6):
        found.update(done)
    assert found.left_s() is None


def test_a_total_that_grows(clock):
    found = Eta(1)
    for done in range(1, 5):
        clock.now += 2
        found.update(done, 10)
    assert found.left_s() == pytest.approx(12)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7514, "2 h 5 min"),
        (3600, "1 h"),
        (111_600, "1 d 7 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_log_says_so(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 15.0)
    with RunProgress("row 2 of 12, vit, epochs", 30, streams=1) as shown:
        for done in range(6):
            clock.now += 20
            shown.update(done, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "row 2 of 12, vit, epochs: 0/30, estimating"
    assert lines[-1] == "row 2 of 12, vit, epochs: 5/30, 8 min 20 s left"


def test_short_work_shows_no_bar_and_longer_work_leaves_none(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal for rich, too
    for seconds, is_shown in ((2.0, False), (4.0, True)):
        with RunProgress("decoding", 10, patience_s=3.0) as shown:
            clock.now += seconds
            shown.update(10, "")
        shown_of_it = capsys.readouterr().err
        assert ("decoding" in shown_of_it) == is_shown
        assert shown_of_it.endswith("\x1b[1A\x1b[2K") == is_shown  # a line up, and erased
