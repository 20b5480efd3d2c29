"""The rules of the projections that ship: sketches, minutes that go, samples that are kept, instances under orders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from bus import Phase, Plan
from bus.format.envelope import envelope
from bus.history.happening import Happening
from bus.registry.card import (
    AGENT_DEREGISTERED,
    AGENT_LOST,
    AGENT_REGISTERED,
    AgentDeregistered,
    AgentLost,
    Card,
    Offering,
)
from bus.registry.orders import AGENT_QUARANTINED, AGENT_RELEASED, AgentQuarantined, AgentReleased, Whom
from projections.agents import AGENTS, ENDED_KEPT
from projections.causes import CAUSES, PAGE, pages, tree
from projections.failures import FAILURES
from projections.projection import MEMORY, View, fold
from projections.sketch import Sketch, together
from projections.traffic import MINUTES_KEPT, TRAFFIC, by_agent, rates
from tests.unit.test_projections_runs import CHAIN, START, Driver, everything, told

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def said(position: int, subject: str, kind: str, data: object, **attributes: Any) -> Happening:
    message = envelope(kind, data, id=f"m{position}", source="/test", time=NOW, **attributes)
    return Happening(position=position, subject=f"bus.{subject}", stored_at=NOW, message=message)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_percentile_of_a_sketch_is_off_by_a_twentieth_at_most(share: float) -> None:
    random = Random(7)
    durations = [random.lognormvariate(0, 2) for _ in range(2_000)]
    sketch = Sketch()
    for each in durations:
        sketch = sketch.with_one(each)
    exact = sorted(durations)[max(int(share * len(durations) + 0.5) - 1, 0)]
    found = sketch.percentile(share)
    assert found is not None and found == pytest.approx(exact, rel=0.06, abs=0.001)


def test_two_sketches_together_are_one_of_all_durations() -> None:
    one, two, both = Sketch(), Sketch(), Sketch()
    for number in range(100):
        one, two = one.with_one(number / 8), two.with_one(number / 4)
    for number in range(100):
        both = both.with_one(number / 8).with_one(number / 4)
    assert together([one, two]).counts == both.counts
    assert together([one, two]).longest_s == both.longest_s
    assert Sketch().percentile(0.5) is None


def test_how_long_work_waits_is_told_by_its_level() -> None:
    plan = Plan("levels", phases=[Phase("a", "work"), Phase("b", "work", priority="low")], priority="high")
    run = Driver(plan).take("a", at_s=2.0).take("b", at_s=8.0)
    view = fold(TRAFFIC, View(), told(everything(run)))
    row = view.rows["work/agent"]
    levels = row.levels
    assert {level: sketch.longest_s for level, sketch in levels.items()} == {"high": 2.0, "low": 8.0}
    assert by_agent([row, row])["agent"].levels["low"].count == 2


def test_minutes_older_than_an_hour_go_and_rates_are_of_minutes_that_are_over() -> None:
    runs = [Driver(CHAIN, f"r{number}", at_s=60.0 * number).take("a", at_s=60.0 * number + 1) for number in range(70)]
    view = fold(TRAFFIC, View(), told(everything(*runs)))
    row = view.rows["work/agent"]
    assert row.taken == row.queued.count == 70 and len(row.minutes) == MINUTES_KEPT
    now = START + timedelta(minutes=70)
    assert rates(row, now, minutes=5).taken == 5 / 300
    assert rates(row, now + timedelta(days=1)).taken == 0


def test_of_many_failures_the_first_and_the_newest_are_shown() -> None:
    runs = [Driver(CHAIN, f"r{number}", at_s=number).take("a").fail("a") for number in range(20)]
    view = fold(FAILURES, View(), told(everything(*runs)))
    [row] = [row for key, row in view.rows.items() if not key.startswith(MEMORY)]
    assert (row.attempts, row.given_up) == (20, 20)
    assert [each.run for each in row.samples] == ["r0", "r18", "r18", "r19", "r19"]


def came(position: int, instance: str, version: str = "1.0") -> Happening:
    card = Card(
        agent="coder",
        version=version,
        instance=instance,
        host="host",
        pid=7,
        capabilities={"code": Offering(concurrency=2, timeout_s=9.0)},
    )
    return said(position, f"agent.coder.{instance}", AGENT_REGISTERED, card)


def test_a_quarantine_holds_for_who_is_there_and_who_comes_later_until_it_is_over() -> None:
    whom = Whom("coder", version="<2")
    story = [
        came(1, "old", "1.0"),
        came(2, "new", "2.0"),
        said(3, "ops.agents", AGENT_QUARANTINED, AgentQuarantined("ann", whom, "wrong prices")),
        came(4, "later", "1.1"),
    ]
    rows = fold(AGENTS, View(), story).rows
    assert [rows[name].health for name in ("old", "new", "later")] == ["quarantined", "registered", "quarantined"]
    assert rows["old"].reason == "ann: wrong prices"
    story.append(said(5, "ops.agents", AGENT_RELEASED, AgentReleased("ann", whom)))
    assert {row.health for row in _shown(fold(AGENTS, View(), story))} == {"registered"}


def test_instances_that_ended_are_shown_for_a_while_and_one_that_comes_back_is_there_again() -> None:
    story = [came(1, "first")]
    story.append(said(2, "agent.coder.first", AGENT_LOST, AgentLost("coder", "first", "crashed", "it closed", 1)))
    view = fold(AGENTS, View(), story)
    assert (view.rows["first"].health, view.rows["first"].lost) == ("lost", 1)
    view = fold(AGENTS, view, [came(3, "first")])
    assert view.rows["first"].health == "registered"
    position = 4
    for number in range(ENDED_KEPT + 20):
        ended = AgentDeregistered("coder", f"i{number}", "told to stop")
        view = fold(
            AGENTS,
            view,
            [
                came(position, f"i{number}"),
                said(position + 1, f"agent.coder.i{number}", AGENT_DEREGISTERED, ended),
            ],
        )
        position += 2
    assert len(_shown(view)) == ENDED_KEPT + 1 and not view.asides


def test_a_long_story_is_told_in_pages_and_its_tree_is_whole() -> None:
    count = PAGE * 2 + 10
    story = [
        said(n, "mail.coder", "ping.v1", {}, correlationid="order", causationid=f"m{n - 1}" if n > 1 else None)
        for n in range(1, count + 1)
    ]
    rows = fold(CAUSES, View(), story).rows
    assert pages(rows["order"]) == ["order#1", "order#2"]
    [told_] = tree([rows["order"], *(rows[key] for key in pages(rows["order"]))])
    depth = 1
    while told_.then:
        [told_] = told_.then
        depth += 1
    assert depth == count


def _shown(view: View[Any]) -> list[Any]:
    return [row for key, row in view.rows.items() if not key.startswith(MEMORY)]
