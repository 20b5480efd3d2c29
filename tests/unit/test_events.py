from __future__ import annotations

import json

import msgspec
import pytest

from bus.errors import MalformedMessage
from bus.format.envelope import Envelope, decode, envelope
from bus.rules import events
from bus.rules.events import (
    COMMIT,
    Commit,
    Event,
    PhaseReady,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRedriven,
    UnknownEvent,
)
from bus.rules.folding import evolve, fold
from bus.rules.plan import Phase
from tests.driver import BEGAN_AT, PERMANENT, Driver, through_the_log


def stored(data: object, *, type: str = COMMIT, run: str | None = "run-1") -> Envelope:
    return envelope(type, data, id="1", source="test", time=BEGAN_AT, runid=run)


def raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def failed_and_redriven() -> Driver:
    run = Driver(Phase("a", "do", each="input"), Phase("b", "do", after=["a"]), input=[1, 2])
    run.complete("a", {"x": 1.5}, 0)
    run.fail("a", PERMANENT, 1)
    run.redrive()
    run.complete("a", None, 1)
    return run


def test_a_commit_is_read_back_from_the_log_as_it_was_decided() -> None:
    for commit in failed_and_redriven().commits:
        read = through_the_log(commit)
        assert list(read.events) == list(commit.events)
        assert (read.run, read.id, read.at, read.position) == (commit.run, commit.id, commit.at, commit.position)


def test_a_run_folded_from_the_log_is_the_run_that_was_decided() -> None:
    run = failed_and_redriven()
    assert fold(map(through_the_log, run.commits)) == run.state


def test_a_commit_knows_who_wrote_it_and_what_caused_it() -> None:
    message = envelope(
        COMMIT,
        events.body([PhaseReady(phase="a", attempt=1)]),
        id="1",
        source="x",
        time=BEGAN_AT,
        runid="r",
        correlationid="c",
        causationid="d",
    )
    read = events.commit(message, 7)
    assert (read.run, read.source, read.correlation, read.causation, read.position) == ("r", "x", "c", "d", 7)


def test_a_commit_without_events_is_none() -> None:
    with pytest.raises(MalformedMessage):
        events.commit(stored({"events": []}), 2)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        events.commit(
            stored({"events": [{"type": "phase.waiting.v1", "phase": "a", "expires_at": "2026-01-01T00:00:00"}]}), 2
        )


def test_the_correlation_of_a_run_is_its_first_commit_s_or_its_own_name() -> None:
    first = Driver(Phase("a", "do")).commits[0]
    assert evolve(None, first).correlation == first.run
    assert evolve(None, msgspec.structs.replace(first, correlation="order-7")).correlation == "order-7"


FUTURE = {"type": "phase.dreamt.v9", "phase": "nowhere", "of": [1, {"x": None}]}


def test_an_unknown_event_type_is_kept_as_it_came() -> None:
    read = events.commit(stored({"events": [FUTURE, PhaseReady(phase="a", attempt=1)]}), 2)
    unknown, known = read.events
    assert isinstance(unknown, UnknownEvent)
    assert events.type_of(unknown) == "phase.dreamt.v9"
    assert json.loads(bytes(unknown.raw)) == FUTURE
    assert known == PhaseReady(phase="a", attempt=1)


def test_an_unknown_event_is_written_as_it_came() -> None:
    read = events.commit(stored({"events": [FUTURE]}), 2)
    assert json.loads(msgspec.json.encode(events.body(read.events))) == {"events": [FUTURE]}
    assert through_the_log(read).events == read.events


def test_an_unknown_event_changes_nothing_but_the_counts() -> None:
    run = Driver(Phase("a", "do"))
    unknown = UnknownEvent("phase.dreamt.v9", raw(json.dumps(FUTURE)))
    after = evolve(run.state, Commit("run-1", "x", run.now, 2, [unknown]))
    assert (after.events, after.unknown_events) == (run.state.events + 1, 1)
    assert msgspec.structs.replace(after, events=run.state.events, unknown_events=0, position=1) == run.state


def test_members_of_a_newer_version_are_left_alone() -> None:
    newer = {"type": "phase.ready.v1", "phase": "a", "attempt": 1, "mood": "good"}
    assert events.commit(stored({"events": [newer]}), 1).events == [PhaseReady(phase="a", attempt=1)]


@pytest.mark.parametrize(
    "data",
    [
        "null",
        "[]",
        "{}",
        '{"events": null}',
        '{"events": {}}',
        '{"events": [null]}',
        '{"events": [1]}',
        '{"events": [{}]}',
        '{"events": [{"type": 1}]}',
        '{"events": [{"type": null}]}',
        '{"events": [{"type": "phase.ready.v1"}]}',
        '{"events": [{"type": "phase.ready.v1", "phase": "a", "attempt": "1"}]}',
        '{"events": [{"type": "phase.progressed.v1", "phase": "a", "attempt": 1, "fraction": null}]}',
        '{"events": [{"type": "run.failed.v1", "problem": {"code": "new_code", "title": "x"}}]}',
        '{"events": [{"type": "run.started.v1", "plan": {"name": "p"}, "input": 1, '
        '"deadline_at": "2026-01-01T00:00:00Z"}]}',
    ],
)
def test_a_known_event_with_the_wrong_shape_is_malformed(data: str) -> None:
    with pytest.raises(MalformedMessage):
        events.commit(stored(raw(data)), 1)


def test_a_known_event_with_the_wrong_shape_is_malformed_beside_an_unknown_one_too() -> None:
    with pytest.raises(MalformedMessage, match=r"not a phase\.ready\.v1"):
        events.commit(stored({"events": [FUTURE, {"type": "phase.ready.v1"}]}), 1)


@pytest.mark.parametrize("value", [b"\xff", b"\xc3\x28", b"\xed\xa0\x80"])
def test_text_that_is_not_utf_8_is_malformed(value: bytes) -> None:
    data = b'{"events": [{"type": "run.cancelled.v1", "by": "' + value + b'"}]}'
    with pytest.raises(MalformedMessage):
        events.commit(stored(msgspec.Raw(data)), 1)


def is_read_or_malformed(event: str, depth: int) -> bool:
    """Whether a commit with an event that nests this deep can be read; if not, it must be malformed."""
    body = msgspec.json.encode(stored(raw('"X"')))
    nested = event.replace("NESTED", "[" * depth + "]" * depth)
    try:
        return len(events.commit(decode(body.replace(b'"X"', f'{{"events": [{nested}]}}'.encode())), 1).events) == 1
    except MalformedMessage:
        return False


@pytest.mark.parametrize(
    "event",
    [
        '{"type": "phase.dreamt.v9", "x": NESTED}',
        '{"type": "run.started.v1", "input": 1, "deadline_at": "2026-01-01T00:00:00Z", '
        '"plan": {"name": "p", "phases": [{"key": "a", "capability": "c", "input": NESTED}]}}',
    ],
    ids=["unknown", "plan"],
)
def test_an_event_is_read_or_malformed_however_deep_it_nests(event: str) -> None:
    # The limit is the interpreter's, and each layer of decoding uses up a little of it: look all around it.
    shallow, deep = 1, 200_000
    assert is_read_or_malformed(event, shallow)
    assert not is_read_or_malformed(event, deep)
    while deep - shallow > 1:
        middle = (shallow + deep) // 2
        shallow, deep = (middle, deep) if is_read_or_malformed(event, middle) else (shallow, middle)
    for depth in range(max(shallow - 50, 1), deep + 50):
        is_read_or_malformed(event, depth)


@pytest.mark.parametrize("message", [stored({"events": []}, type="phase.work.v1"), stored({"events": []}, run=None)])
def test_another_message_is_not_a_commit(message: Envelope) -> None:
    with pytest.raises(MalformedMessage, match="position 7 holds"):
        events.commit(message, 7)


@pytest.mark.parametrize(
    ("event", "ends"),
    [
        (RunCompleted(), True),
        (RunFailed(problem=PERMANENT), True),
        (RunCancelled(by="ann"), True),
        (RunRedriven(by="ann", phases=("a",), deadline_at=BEGAN_AT), False),
        (PhaseReady(phase="a", attempt=1), False),
        (UnknownEvent("run.dreamt.v9", raw("{}")), False),
    ],
)
def test_a_run_ends_with_one_of_three_events(event: Event, ends: bool) -> None:
    assert events.is_ending(event) is ends


def test_commits_that_were_folded_before_are_ignored() -> None:
    run = failed_and_redriven()
    assert fold(run.commits, run.state) == run.state
    assert fold([run.commits[0], *run.commits]) == run.state


def test_no_commits_are_no_run() -> None:
    assert fold([]) is None
    run = Driver(Phase("a", "do"))
    assert fold([], run.state) == run.state
