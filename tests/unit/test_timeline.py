"""A run as a table."""

from bus.rules.plan import Approval, Phase
from bus.rules.references import ref
from bus.rules.run import RunState
from console.timeline import ASCII, UNICODE, glyphs, timeline
from tests.driver import LOST, PERMANENT, TRANSIENT, Driver


def drawn(run: Driver) -> list[str]:
    return timeline(run.state, run.now, drawn=UNICODE).splitlines()


def line(run: Driver, begins: str) -> str:
    [found] = [text for text in drawn(run) if text.strip().startswith(begins)]
    return found


def cells(text: str) -> str:
    return "".join(character for character in text if character in "█░✗").lstrip("✗")


def test_a_plain_phase_shows_how_long_it_took_and_who_did_it() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    run.wait(1)
    run.take("one", instance="ann-1")
    run.wait(3)
    run.complete("one", instance="ann-1")

    assert drawn(run)[0] == "run-1  in progress, 4.0 s"
    first, second = line(run, "✓ one"), line(run, "○ two")
    assert "completed  " in first and "  4.0 s  " in first and first.endswith("ann-1")
    assert "ready" in second


def test_a_bar_tells_waiting_from_work() -> None:
    run = Driver(Phase("one", "work"))
    run.wait(5)
    run.take("one")
    run.wait(5)
    run.complete("one")

    bar = cells(line(run, "✓ one").split("completed", 1)[1])
    assert abs(bar.count("░") - bar.count("█")) <= 1
    assert bar == "░" * bar.count("░") + "█" * bar.count("█")


def test_a_recovered_attempt_is_told_with_both_holders() -> None:
    run = Driver(Phase("one", "work"))
    run.take("one", instance="ann-1")
    run.wait(2)
    run.fail("one", LOST, instance="ann-1", cause="crashed")
    run.wait(0.031)
    run.take("one", instance="bob-1")
    run.wait(1)
    run.complete("one", instance="bob-1")

    assert line(run, "one:") == (
        "    one: attempt 1 by ann-1, crashed after 2.0 s; attempt 2 31 ms later by bob-1, completed after 1.0 s"
    )
    assert "✗" in line(run, "✓ one").removeprefix("✓ one")


def test_many_items_are_one_line_with_the_slowest_below() -> None:
    run = items(3)
    for index in range(3):
        run.take("many", index, instance=f"ann-{index % 2}")
        run.wait(index + 1)
        run.complete("many", item=index, instance=f"ann-{index % 2}")

    many = line(run, "✓ many")
    assert "3/3" in many and many.endswith("ann-0 2, ann-1 1")
    assert line(run, "slowest") == "    slowest many:2, 3.0 s"


def test_of_many_attempts_that_broke_off_only_the_first_are_told() -> None:
    run = items(12)
    for index in range(12):
        run.fail("many", TRANSIENT, index)

    assert sum(": attempt 1 by one, handler_error" in text for text in drawn(run)) == 8
    assert line(run, "4 more") == "    4 more whose attempts broke off"


def test_a_failed_phase_says_why_and_a_skipped_one_has_no_bar() -> None:
    run = Driver(Phase("one", "work"), Phase("two", "work", after=["one"]))
    run.fail("one", PERMANENT)

    assert line(run, "one:").endswith("given up: no such sku")
    assert line(run, "⊘ two").endswith("one failed") and not cells(line(run, "⊘ two"))


def test_a_gate_names_who_answered() -> None:
    run = Driver(Phase("review", approval=Approval(expires_s=60)))
    run.wait(2)
    run.answer("review")

    assert line(run, "✓ review").endswith("ann")


def test_the_bars_fit_the_width() -> None:
    state = items(3).state

    assert max(map(len, timeline(state, state.started_at, width=72).splitlines())) <= 72


def test_a_stream_that_takes_no_blocks_gets_ascii() -> None:
    state = items(2).state

    assert glyphs("utf-8") is UNICODE
    assert glyphs("iso-8859-1") is glyphs(None) is glyphs("no-such-encoding") is ASCII
    assert timeline(state, state.started_at, drawn=ASCII).isascii()


def test_what_a_handler_wrote_cannot_move_the_cursor() -> None:
    run = Driver(Phase("one", "work"))
    run.fail("one", type(PERMANENT)("rejected", "\x1b[2Jgone\n", "permanent"))

    assert "\x1b" not in timeline(run.state, run.now)
    assert isinstance(run.state, RunState)


def items(count: int) -> Driver:
    run = Driver(Phase("many", "work", each=ref("input"), width=count), input=list(range(count)))
    assert run.items("many") == ["ready"] * count
    return run
