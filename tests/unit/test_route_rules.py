"""What routes mean to a run: whom its work is given to, and that it stays there."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from bus.errors import InvalidName, MalformedMessage, Refused, SettingsError
from bus.format.envelope import envelope
from bus.format.subjects import Subjects, is_special, mailbox, routed
from bus.problem import Problem
from bus.registry.routes import ROUTE_SET, shares_of, turn
from bus.registry.versions import closest, fits
from bus.rules.commands import Begin, Command, Complete, Fail, Offer, Redrive, Reroute, Take
from bus.rules.decide import decide
from bus.rules.events import Arm, Commit, PhaseReady, PhaseStarted
from bus.rules.folding import evolve
from bus.rules.inputs import work
from bus.rules.plan import Phase, Plan
from bus.rules.retry import Retry
from bus.rules.route import Route, Routes, Share, need
from bus.rules.run import RunState
from bus.rules.verify import violations
from tests.driver import BEGAN_AT

OLD, NEW = Arm("1.*", 1), Arm("2.0.0", 1)
PLAN = Plan("two", phases=[Phase("one", "price", retry=Retry(transient=3)), Phase("two", "price", after=["one"])])


def route(old: float, new: float, revision: int = 1) -> Routes:
    return {"price": Route("price", (Share("1.*", old), Share("2.0.0", new)), revision)}


class Told:
    """A run, with the routes that stand."""

    def __init__(self, routes: Routes, sticky: str = "") -> None:
        self.routes = routes
        self.commits: list[Commit] = []
        self.state: RunState | None = None
        self.do(Begin(PLAN, msgspec.Raw(b"{}"), correlation="story", sticky=sticky))

    def do(self, command: Command, *, after_s: float = 0.0) -> None:
        now = BEGAN_AT + timedelta(seconds=after_s)
        events = decide(self.state, command, run="r", now=now, routes=self.routes)
        correlation = command.correlation if isinstance(command, Begin) else None
        commit = Commit("r", str(len(self.commits)), now, len(self.commits) + 1, events, correlation=correlation)
        self.commits.append(commit)
        self.state = evolve(self.state, commit)
        assert not list(violations(self.commits, now))

    def arm(self, phase: str = "one") -> Arm | None:
        assert self.state is not None
        item = self.state.phases[phase].item(None)
        assert item is not None
        return item.arm

    def take(self, phase: str = "one", attempt: int = 1) -> Take:
        return Take(phase, None, attempt, need("price", self.arm(phase)), "pricing", "pricing-1", 30.0)

    def fail(self, attempt: int = 1) -> None:
        self.do(Fail("one", None, attempt, "pricing-1", Problem("handler_error", "down", "transient")))


def test_what_becomes_ready_is_for_those_of_its_arm_alone() -> None:
    told = Told(route(0, 1))
    assert told.arm() == NEW
    with pytest.raises(Refused, match="needs"):
        told.do(Take("one", None, 1, "price", "pricing", "pricing-1", 30.0))
    with pytest.raises(Refused, match="needs"):
        told.do(Take("one", None, 1, routed("1.*", "price"), "pricing", "pricing-1", 30.0))
    told.do(told.take())
    assert told.state is not None
    (attempt,) = told.state.phases["one"].items[0].attempts
    assert attempt.arm == NEW
    assert work(told.state, "one", None).capability == routed("2.0.0", "price")


def test_all_phases_of_a_run_go_the_way_its_story_goes_or_what_it_is_sticky_to() -> None:
    for sticky in ("", "ada", "ben", "cem", "dan"):
        routes = route(1, 1)
        told = Told(routes, sticky)
        told.do(told.take())
        told.do(Complete("one", None, 1, "pricing-1", msgspec.Raw(b"1")))
        assert told.arm("one") == told.arm("two") == routes["price"].arm(sticky or "story")


def test_a_retry_stays_where_the_attempt_before_was_until_that_gets_nothing_any_more() -> None:
    told = Told(route(1, 1e9))
    told.do(told.take())
    told.routes = route(1e9, 1, revision=2)
    told.fail()
    assert told.arm() == NEW
    told.do(told.take(attempt=2), after_s=60)
    told.routes = route(1, 0, revision=3)
    told.fail(2)
    assert told.arm() == Arm("1.*", 3)


def test_a_new_pass_goes_the_way_the_route_says_now() -> None:
    told = Told(route(1, 1e9))
    told.do(told.take())
    told.do(Fail("one", None, 1, "pricing-1", Problem("rejected", "no", "permanent")))
    told.routes = route(1e9, 1, revision=2)
    told.do(Redrive("ann"))
    assert told.arm() == Arm("1.*", 2)


def test_who_goes_on_with_the_next_phase_is_of_its_arm() -> None:
    told = Told(route(0, 1))
    told.do(told.take())
    others = {"price": Route("price", (Share("3.*", 1),), 2)}
    for routes, goes_on in ((told.routes, True), (others, False)):
        offer = Offer(routed("2.0.0", "price"), "pricing", 30.0)
        complete = Complete("one", None, 1, "pricing-1", msgspec.Raw(b"1"), offer)
        events = decide(told.state, complete, run="r", now=BEGAN_AT, routes=routes)
        assert any(isinstance(each, PhaseStarted) for each in events) == goes_on


def test_what_waits_is_sent_another_way_as_the_same_attempt() -> None:
    told = Told(route(1, 1e9))
    told.do(Reroute("one", None, 1, ("2.0.0",)))
    assert told.arm() == Arm("1.*", 1, instead_of="2.0.0")
    with pytest.raises(Refused, match="no other way"):
        told.do(Reroute("one", None, 1, ("2.0.0",)))
    with pytest.raises(Refused, match="no other way"):
        told.do(Reroute("one", None, 1, ("1.*", "2.0.0")))
    told.routes = {}
    told.do(Reroute("one", None, 1))
    assert told.arm() is None
    told.do(told.take())
    with pytest.raises(Refused, match="does not wait"):
        told.do(Reroute("one", None, 1, ("1.*",)))
    ready = [each for commit in told.commits for each in commit.events if isinstance(each, PhaseReady)]
    assert [each.attempt for each in ready] == [1, 1, 1]


def test_without_a_route_nothing_is_said_of_arms() -> None:
    told = Told({})
    assert told.arm() is None
    assert b"arm" not in msgspec.json.encode(told.commits[0].events[1])


def test_ranges_of_versions_have_subjects_of_their_own() -> None:
    ranges = ("1.*", "1_", ">=1", "<=1", ">1", "*", "1", "2.0.0", ">=1.2,<2", "dev")
    capabilities = {routed(each, "price.of") for each in ranges}
    assert len(capabilities) == len(ranges)
    assert all(is_special(each) for each in capabilities)
    assert all(Subjects().who(each) for each in capabilities)
    with pytest.raises(InvalidName):
        routed("1.*", "p" * 120)


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [("1.4.0", "1.*", True), ("2.0", "1.*", False), ("dev", "*", True), ("dev", "1.*", False), ("2.0rc1", "*", True)],
)
def test_a_range_may_be_written_short(version: str, wanted: str, is_in: bool) -> None:
    assert fits(version, wanted) == is_in


def test_an_instance_belongs_to_the_share_that_is_closest() -> None:
    assert closest("2.0.0", ["*", ">=1", "2.0.0"]) == "2.0.0"
    assert closest("2.1.0", ["*", ">=2", ">=1", "2.0.0"]) == ">=2"
    assert closest("dev", [">=1", "*"]) == "*"
    assert closest("dev", [">=1"]) is None


@pytest.mark.parametrize("capability", [mailbox("ann"), "agent.price-1.at.price", "agent.v2.v.price"])
def test_what_is_addressed_to_one_has_no_route(capability: str) -> None:
    with pytest.raises(SettingsError, match="no other way"):
        shares_of(capability, {"*": 1})


def test_a_route_that_makes_no_sense_is_malformed() -> None:
    said = {"by": "ann", "capability": "price", "shares": [{"versions": ">x", "weight": 1}], "revision": 1}
    for each in (said, said | {"shares": []}, said | {"capability": "no name!"}, said | {"revision": "x"}):
        with pytest.raises(MalformedMessage):
            turn(envelope(ROUTE_SET, each, id="1", source="x", time=BEGAN_AT), 1)
