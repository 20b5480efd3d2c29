"""Selections over any records: what fits is what a plain filter finds, and stands where it is looked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.format.subjects import Subjects, pattern
from bus.history.happening import Happening, happenings
from bus.history.selection import Selection
from bus.rules.events import COMMIT

BEGAN_AT = datetime(2026, 1, 1, tzinfo=UTC)
RUNS, PHASES, AGENTS = ("r1", "r2"), ("a", "b"), ("ann", "bob")


def ready(phase: str) -> dict[str, Any]:
    return {"type": "phase.ready.v1", "phase": phase, "attempt": 1}


def started(phase: str, agent: str, item: int | None) -> dict[str, Any]:
    about = {} if item is None else {"item": item}
    instance = f"{agent}-12345678"
    return {
        "type": "phase.started.v1",
        "phase": phase,
        "attempt": 1,
        "agent": agent,
        "instance": instance,
        "deadline_at": "2026-01-02T00:00:00Z",
        **about,
    }


def newer(phase: str) -> dict[str, Any]:
    return {"type": "phase.dreamt.v3", "phase": phase}


phases, agents = st.sampled_from(PHASES), st.sampled_from(AGENTS)
events = st.one_of(
    st.builds(ready, phases),
    st.builds(started, phases, agents, st.sampled_from((None, 0, 1))),
    st.builds(newer, phases),
    st.just({"type": "run.completed.v1"}),
)
sources = st.sampled_from(("/client", "/agent/ann/ann-12345678", "/agent/bob/bob-12345678"))


@st.composite
def messages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A subject, and what is on it: a commit, a dead letter, something of an agent, or bytes."""
    kind = draw(st.sampled_from(("run", "run", "run", "dead", "agent", "bytes")))
    run = draw(st.sampled_from(RUNS))
    if kind == "bytes":
        return draw(st.sampled_from((f"bus.run.{run}", "bus.dead.c", "bus.topic.t"))), b"\xff not ours"
    said: dict[str, Any] = {
        "specversion": "1.0",
        "id": "1",
        "source": draw(sources),
        "time": "2026-01-01T00:00:00Z",
        "datacontenttype": "application/json",
        "data": {"n": 1},
    }
    if kind == "agent":
        said |= {"type": "agent.registered.v1"}
        return f"bus.agent.{draw(agents)}.one", json.dumps(said).encode()
    said |= {"runid": run}
    if correlation := draw(st.sampled_from((None, "c1", "c2"))):
        said |= {"correlationid": correlation}
    if kind == "dead":
        said |= {"type": "dead.letter.v1", "phase": draw(phases)}
        return "bus.dead.c", json.dumps(said).encode()
    said |= {"type": COMMIT, "data": {"events": draw(st.lists(events, min_size=1, max_size=3))}}
    # Now and then on the subject of another.
    return f"bus.run.{draw(st.sampled_from((run, run, run, 'r1')))}", json.dumps(said).encode()


instants = st.integers(0, 12).map(lambda minutes: BEGAN_AT + timedelta(minutes=minutes))
selections = st.builds(
    Selection,
    subjects=st.sampled_from(((), ("bus.run.*",), ("bus.run.r1", "bus.dead.>"), ("bus.>",))),
    runs=st.sampled_from(((), ("r1",), ("r1", "r2"))),
    phase=st.sampled_from((None, "a", "b", "a:1")),
    agent=st.sampled_from((None, "ann")),
    types=st.sampled_from(((), ("phase.started",), ("phase.*", "dead.letter.v1"), ("phase.dreamt.v3",))),
    correlation=st.sampled_from((None, "c1", "r1")),
    after=st.integers(0, 5),
    upto=st.none() | st.integers(0, 12),
    since=st.none() | instants,
    until=st.none() | instants,
)


def is_wanted(wanted: Selection, position: int, subject: str, body: bytes, index: int) -> bool:
    """The same rules, spelled out over what is in the record."""
    at = BEGAN_AT + timedelta(minutes=position)
    if position <= wanted.after or (wanted.upto is not None and position > wanted.upto):
        return False
    if (wanted.since and at < wanted.since) or (wanted.until and at >= wanted.until):
        return False
    if wanted.subjects and not any(pattern(each).fullmatch(subject) for each in wanted.subjects):
        return False
    _, kind, name = subject.split(".", 2)
    try:
        said = json.loads(body)
    except ValueError:
        return not wanted.runs or kind == "dead" or (kind == "run" and name in wanted.runs)
    if wanted.runs and not (kind in ("run", "dead") and said["runid"] in wanted.runs):
        # A commit of another run stands where it does not belong: it is shown where it stands.
        return kind == "run" and name != said["runid"] and name in wanted.runs
    if kind == "run" and name != said["runid"]:
        return not wanted.runs or name in wanted.runs
    event = said["data"]["events"][index] if kind == "run" else said
    place = {event.get("phase"), f"{event.get('phase')}:{event.get('item')}"}
    if wanted.phase is not None and (wanted.phase not in place or event["type"] == "phase.dreamt.v3"):
        return False
    if wanted.agent is not None and not (
        wanted.agent in said["source"].split("/")
        or event.get("agent") == wanted.agent
        or (kind == "agent" and name.split(".")[0] == wanted.agent)
    ):
        return False
    unversioned, _, _ = event["type"].rpartition(".v")
    names = {event["type"], unversioned, f"{unversioned.partition('.')[0]}.*"}
    if wanted.types and not names & set(wanted.types):
        return False
    return wanted.correlation in (None, said.get("correlationid") or said.get("runid"))


def found_in(log: list[tuple[str, bytes]]) -> list[tuple[Happening, bytes]]:
    return [
        (each, body)
        for position, (subject, body) in enumerate(log, 1)
        for each in happenings(position, subject, BEGAN_AT + timedelta(minutes=position), body)
    ]


@settings(deadline=None, max_examples=300)
@given(st.lists(messages(), max_size=10), selections)
def test_what_fits_is_what_a_plain_filter_finds(log: list[tuple[str, bytes]], wanted: Selection) -> None:
    everything = found_in(log)
    fitting = [(each.position, each.index) for each, _ in everything if wanted.fits(each)]
    assert fitting == [
        (each.position, each.index)
        for each, body in everything
        if is_wanted(wanted, each.position, each.subject, body, each.index)
    ]


@given(st.lists(messages(), max_size=10), selections)
def test_all_that_fits_is_on_the_subjects_that_are_read(log: list[tuple[str, bytes]], wanted: Selection) -> None:
    read = [pattern(each) for each in wanted.filters(Subjects("bus"))]
    for each, _ in found_in(log):
        assert not wanted.fits(each) or any(subject.fullmatch(each.subject) for subject in read)


@given(st.binary(max_size=200), st.sampled_from(("bus.run.r", "bus.dead.c", "bus.run.\udcff.x")))
def test_any_bytes_are_at_least_one_happening(body: bytes, subject: str) -> None:
    found = happenings(1, subject, BEGAN_AT, body)
    assert found
    assert all(each.type and each.at and Selection().fits(each) for each in found)
