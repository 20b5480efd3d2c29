"""A run as it goes on, told line by line and as a tree."""

from __future__ import annotations

import io
from datetime import timedelta

from bus.rules.folding import fold
from bus.rules.plan import Approval, Phase
from bus.rules.references import ref
from bus.rules.run import RunState
from console.foresight import Foresight
from console.live import Lines, Tree, changes, shown, tree
from console.lookout import untaken
from console.timeline import ASCII
from projections.history import History, learn
from projections.progress import progress
from tests.driver import LOST, PERMANENT, Driver


def told(run: Driver) -> list[str]:
    """Every line that a reader from the start gets."""
    lines: list[str] = []
    state: RunState | None = None
    for commit in run.commits:
        before, state = state, fold([commit], state)
        assert state is not None
        lines += changes(before, state)
    return lines


def test_a_plain_phase_is_a_line_when_it_starts_and_one_when_it_ends() -> None:
    run = Driver(Phase("one", "work"))
    run.take("one", instance="ann-1")
    run.wait(1.5)
    run.complete("one", instance="ann-1")

    assert told(run) == ["run-1 started: one", "one started by ann-1", "one completed, 1.5 s", "run-1 completed"]


def test_items_are_counted_when_they_are_done_and_not_told_one_by_one() -> None:
    run = many(3)
    for index in range(3):
        run.take("many", index)
    for index in range(3):
        run.complete("many", item=index)

    assert told(run) == [
        "run-1 started: many",
        "many started, 3 items",
        "many 1/3",
        "many 2/3",
        "many completed, 0 ms",
        "run-1 completed",
    ]


def test_a_thousand_items_are_twenty_lines() -> None:
    run = many(1000)
    for index in range(1000):
        run.complete("many", item=index)

    assert len(told(run)) <= 24


def test_an_attempt_that_broke_off_is_told_with_its_successor() -> None:
    run = many(2)
    run.take("many", 1, instance="ann-1")
    run.fail("many", LOST, 1, instance="ann-1", cause="crashed")
    run.take("many", 1, instance="bob-1")

    assert told(run)[-2:] == [
        "many:1 attempt 1 of ann-1 crashed: the process is gone",
        "many:1 attempt 2 started by bob-1",
    ]


def test_a_gate_that_waits_shows_what_to_type() -> None:
    run = Driver(Phase("review", approval=Approval()))
    waiting = told(run)
    run.answer("review")

    assert waiting[-1] == "review waits for an answer until 2026-01-08 00:00 UTC: phasebus run approve run-1 review"
    assert told(run)[-2:] == ["review approved by ann, 0 ms", "run-1 completed"]


def test_a_failure_is_told_once_for_the_phase_and_once_for_the_run() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    run.fail("one", PERMANENT)

    assert told(run)[-3:-1] == ["one failed, 0 ms: no such sku", "two skipped: one failed"]
    assert told(run)[-1].startswith("run-1 failed: ")


def test_a_reader_who_comes_late_gets_one_line_per_phase_that_has_begun() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    run.complete("one")
    run.take("two")

    assert list(changes(None, run.state)) == ["run-1 started: one, two", "one completed, 0 ms", "two started by one"]


def test_a_pipe_gets_elapsed_time_and_percent_and_no_escape_codes() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    stream = io.StringIO()
    lines = Lines(stream, Foresight())
    lines.show(run.state, run.now)
    run.wait(2)
    run.complete("one")
    lines.show(run.state, run.now)

    assert stream.getvalue().splitlines() == [
        "    0 ms    0%  run-1 started: one, two",
        "   2.0 s   50%  one completed, 2.0 s",
    ]


def test_lines_never_go_backwards_in_time_whatever_clocks_say() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    stream = io.StringIO()
    lines = Lines(stream, Foresight())
    lines.show(run.state, run.now)
    lines.remark("one waits", run.now + timedelta(seconds=3))
    run.wait(2)
    run.complete("one")
    lines.show(run.state, run.now)

    assert [line[:14] for line in stream.getvalue().splitlines()] == [
        "    0 ms    0%",
        "   3.0 s    0%",
        "   3.0 s   50%",
    ]


def test_a_redriven_run_tells_where_its_next_pass_begins() -> None:
    run = Driver(Phase("one", "work"))
    run.fail("one", PERMANENT)
    run.redrive()

    assert told(run)[-1] == "run-1 redriven, pass 2"


def test_nothing_is_forecast_while_only_people_are_waited_for() -> None:
    past = Driver(Phase("one", "work"))
    past.wait(3)
    past.complete("one")
    history = learn([past.state])
    run = Driver(Phase("review", approval=Approval()), Phase("one", "work", after=["review"]))
    beside = Driver(Phase("review", approval=Approval()), Phase("one", "work"))

    def head(state: RunState) -> str:
        far = progress(state, history, run.now)
        return tree(state, far, run.now, ASCII, Foresight(history).left(state, far.eta))[0]

    assert head(run.state) == "run-1  0%  0 ms"
    assert head(beside.state).endswith("s left")
    assert "until 2026-01-08 00:00 UTC" in tree(run.state, progress(run.state, history, run.now), run.now, ASCII)[1]


def test_what_waits_to_be_taken_is_known_with_its_capability() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "paint", after=["one"]), Phase("three", "work.slow"))
    run.take("three")

    assert untaken(run.state, run.now) == {"one": "work"}
    run.complete("one")
    assert untaken(run.state, run.now) == {"two": "paint"}


async def test_a_stream_that_is_no_terminal_is_told_in_lines() -> None:
    async with shown(io.StringIO(), Foresight()) as screen:
        assert isinstance(screen, Lines)


def test_a_tree_has_a_line_per_phase_with_items_time_and_what_is_under_way() -> None:
    run = many(3)
    run.complete("many", item=0)
    run.take("many", 1)
    run.wait(4)

    assert tree(run.state, progress(run.state, History(), run.now), run.now, ASCII) == [
        "run-1  33%  4.0 s",
        " * many      1/3      4.0 s  1 under way",
    ]


def test_a_tree_is_drawn_again_over_itself_and_below_what_was_said() -> None:
    run = many(3)
    stream = io.StringIO()
    terminal = Tree(stream, Foresight(), has_colour=False)
    terminal.show(run.state, run.now)
    terminal.draw()
    terminal.draw()
    terminal.say("hello")

    first, second, third = stream.getvalue().split("\x1b[J")[1:4]
    assert first.endswith("\x1b[2F") and second.endswith("\x1b[2F")
    assert third.startswith("hello\n")


def many(count: int) -> Driver:
    return Driver(Phase("many", "work", each=ref("input"), width=count), input=list(range(count)))
