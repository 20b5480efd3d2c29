"""A changed plan is tried on what has happened: what would go another way is said, and what would break."""

from __future__ import annotations

import msgspec
import pytest

from bus.replay.plancheck import Check, check
from bus.rules.commands import Begin, Cancel, Checkpoint, Intend, Pause, Redrive, Resume, Rollback, Signal, Skip
from bus.rules.decide import decide
from bus.rules.events import Commit, UnknownEvent
from bus.rules.plan import Approval, Phase, Plan, WaitFor
from bus.rules.references import ref
from bus.rules.retry import RetryPolicy
from tests.driver import BEGAN_AT, PERMANENT, RUN, TRANSIENT, Driver


def a_run() -> Driver:
    """Still open: a and b are done, c is under way."""
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("c", "do", input=ref("a.files"), after=["b"]))
    run.complete("a", {"files": [1, 2]})
    run.complete("b")
    run.take("c")
    return run


def checked(run: Driver, *phases: Phase) -> Check:
    return check(run.commits, Plan("plan", phases=list(phases), timeout_s=3600))


A, B, C = Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("c", "do", input=ref("a.files"), after=["b"])

CHANGES: list[tuple[str, tuple[Phase, ...], str, int, str]] = [
    ("a phase behind all", (A, B, C, Phase("d", "do", after=["c"])), "unaffected", 0, ""),
    ("a phase beside", (A, B, C, Phase("d", "do", after=["a"])), "differs", 3, "is new, and would open here"),
    ("a phase in front", (A, Phase("n", "do", after=["a"]), Phase("b", "do", after=["n"]), C), "breaks", 3, "before b"),
    (
        "a gate in front",
        (A, Phase("ok", approval=Approval(), after=["a"]), Phase("b", "do", after=["ok"]), C),
        "breaks",
        3,
        "is new, and comes before b, c",
    ),
    ("a phase that is gone", (A, Phase("c", "do", input=ref("a.files"))), "breaks", 3, "the plan has no such phase"),
    ("earlier", (A, B, Phase("c", "do", input=ref("a.files"))), "differs", 3, "would open at 3, and opened at 5"),
    (
        "a reference",
        (A, B, Phase("c", "do", input=ref("a.names"), after=["b"])),
        "breaks",
        5,
        "'a.names' leads nowhere",
    ),
    ("another input", (A, B, Phase("c", "do", input=ref("a"), after=["b"])), "differs", 5, "given something else"),
    ("each", (A, B, Phase("c", "do", each=ref("a.files"), after=["b"])), "breaks", 5, "one by one work, and was work"),
    ("no list", (A, B, Phase("c", "do", each=ref("a"), after=["b"])), "breaks", 5, "one by one work"),
    ("when", (A, Phase("b", "do", after=["a"], when="a.files == []"), C), "differs", 3, "would be skipped"),
    ("a capability", (A, Phase("b", "more", after=["a"]), C), "differs", 3, "would need 'more', and needed 'do'"),
    ("a time", (A, Phase("b", "do", after=["a"], timeout_s=5), C), "differs", 4, "another deadline_at"),
    ("a gate instead", (A, Phase("b", approval=Approval(), after=["a"]), C), "breaks", 3, "would be an approval"),
]


@pytest.mark.parametrize(
    ("phases", "outcome", "position", "says"), [each[1:] for each in CHANGES], ids=[each[0] for each in CHANGES]
)
def test_what_a_change_means_for_an_open_run(phases: tuple[Phase, ...], outcome: str, position: int, says: str) -> None:
    found = checked(a_run(), *phases)
    assert found.outcome == outcome, found
    if says:
        assert any(each.position == position and says in each.says for each in found.findings), found


def test_what_an_ended_run_has_done_is_history() -> None:
    run = a_run()
    run.complete("c")
    behind_a_gate = (A, Phase("ok", approval=Approval(), after=["a"]), Phase("b", "do", after=["ok"]), C)
    assert checked(run, *behind_a_gate).outcome == "differs"
    assert checked(run, A, Phase("c", "do", input=ref("a.files"))).outcome == "differs"


def test_what_would_fail_breaks_an_ended_run_too() -> None:
    run = a_run()
    run.complete("c")
    found = checked(run, A, B, Phase("c", "do", input=ref("a.names"), after=["b"]))
    assert found.outcome == "breaks"
    assert [each.phase for each in found.findings if each.breaks] == ["c"]


def test_work_that_needed_more_tries_than_the_new_plan_has_breaks() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", TRANSIENT)
    run.wait(10)
    run.complete("a")
    found = checked(run, Phase("a", "do", retry=RetryPolicy(transient=0)))
    assert (found.outcome, found.findings[0].says) == ("breaks", "would be failed (the line is down), and is completed")


def test_what_took_longer_than_the_new_plan_lets_it_is_said() -> None:
    run = Driver(Phase("a", "do"))
    run.take("a")
    run.wait(30)
    run.complete("a")
    found = checked(run, Phase("a", "do", timeout_s=10))
    assert found.outcome == "differs"
    assert "would have had until 00:00:10" in found.findings[0].says


def test_what_needs_the_output_of_a_new_phase_cant_be_told() -> None:
    run = a_run()
    found = checked(run, A, B, Phase("n", "do", after=["b"]), Phase("c", "do", input=ref("n.files")))
    says = {each.phase: each.says for each in found.findings}
    assert "comes before c" in says["n"]
    assert says["c"] == "opened here, and would still wait for n"


def test_a_new_phase_that_would_be_skipped_or_fail_is_said() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", PERMANENT)
    found = checked(run, A, Phase("n", "do", after=["a"]))
    assert [each.says for each in found.findings] == ["is new, and would be skipped (a failed)"]
    run = Driver(Phase("a", "do"))
    run.complete("a", {})
    found = checked(run, A, Phase("n", "do", input=ref("a.files")))
    assert found.outcome == "breaks"
    assert [(each.phase, each.position) for each in found.findings] == [("n", 3)]


def test_a_list_that_is_another_has_other_items() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a.files")))
    run.complete("a", {"files": [1, 2], "few": [1]})
    run.complete("b", item=0)
    found = checked(run, Phase("a", "do"), Phase("b", "do", each=ref("a.few")))
    assert found.outcome == "differs"
    assert any(each.phase == "b" for each in found.findings)


def test_an_event_of_another_version_is_said() -> None:
    run = a_run()
    last = run.commits[-1]
    unknown = UnknownEvent("phase.dreamt.v1", msgspec.Raw(b"{}"))
    commits = [*run.commits[:-1], msgspec.structs.replace(last, events=[*last.events, unknown])]
    found = check(commits, run.state.plan)
    assert (found.outcome, found.findings[0].position) == ("differs", last.position)


def test_a_run_to_which_everything_happened_is_unaffected_by_its_own_plan() -> None:
    run = Driver(
        Phase("a", "do", compensate="undo"),
        Phase("b", "do", each=ref("a"), width=1, fail_fast=True, after=["go"]),
        Phase("go", wait_for=WaitFor("go")),
        Phase("gate", approval=Approval(), after=["b"]),
        Phase("late", "do", after=["gate"], total_timeout_s=50),
    )
    run.do(Signal("go", "ann", msgspec.Raw(b"1")))
    run.fail("a", TRANSIENT)
    run.wait(10)
    run.complete("a", [1, 2])
    run.do(Checkpoint("begun", "ann"))
    run.do(Pause("ann"))
    run.do(Resume("ann"))
    run.complete("b", item=0)
    run.fail("b", PERMANENT, item=1)
    run.do(Redrive("ann"))
    run.complete("b", item=1)
    run.answer("gate", approve=False)
    run.do(Skip("gate", "ann"))
    run.wait(60)
    run.fire_due()
    run.do(Rollback("ann", before="b"))
    run.do(Cancel("ann"))
    run.do(Redrive("ann", ("a",), afresh=True))
    assert check(run.commits, run.state.plan).outcome == "unaffected"


def test_a_run_of_a_part_and_a_fork_are_unaffected_by_their_own_plans() -> None:
    part = Driver(A, B, Phase("c", "do", after=["b"]), first="b", last="b")
    part.complete("b")
    assert check(part.commits, part.state.plan).outcome == "unaffected"
    begin = Begin(part.state.plan, msgspec.Raw(b"{}"), adopted={"a": msgspec.Raw(b"1")}, origin="run-0@3")
    happened = decide(None, begin, run=RUN, now=BEGAN_AT)
    fork = [Commit(RUN, "1", BEGAN_AT, 1, happened)]
    assert check(fork, part.state.plan).outcome == "unaffected"
    without = Plan("plan", phases=[A, Phase("c", "do")], timeout_s=3600)
    assert check(fork, without).outcome == "differs"


def test_a_rollback_that_is_gone_on_with_is_about_what_it_was_about_before() -> None:
    """What had not begun by then was cancelled with it, and is no part of it when somebody goes on."""
    phases = Phase("a", "do"), Phase("b", "do", after=["a"], compensate="undo"), Phase("c", "do", after=["b"])
    run = Driver(*phases)
    run.complete("a")
    run.take("b")
    run.do(Intend("b", None, 1, "one", "charge"))
    run.do(Rollback("ann", before="a"))
    run.fail("b", PERMANENT)
    assert (run.state.status, run.state.phases["c"].status) == ("failed", "cancelled")
    run.do(Redrive("ben"))
    found = checked(run, *phases)
    assert found.outcome == "unaffected", found
