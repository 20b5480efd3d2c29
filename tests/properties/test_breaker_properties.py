"""Many processes, one log: whatever they do in whatever order, one probe at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bus.errors import CircuitOpen
from bus.guards.breaker import Breaker, BreakerState, Transition, abandoned, after, failed, probe, succeeded, trip
from bus.problem import Problem

POLICY = Breaker(cooldown_s=5, longest_s=40, probe_s=10)
SICK = Problem("handler_error", "x", "transient")
PROCESSES = range(4)


class Processes(RuleBasedStateMachine):
    """Each process knows some past state; it decides on that, and only an append at the newest version is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.log = [BreakerState(breaker="x")]
        self.known = dict.fromkeys(PROCESSES, self.log[0])
        self.clock = datetime(2026, 1, 1, tzinfo=UTC)
        # By probe: which process makes the call, and until when it may last.
        self.under_way: dict[str, tuple[int, datetime]] = {}
        self.count = 0

    def append(self, process: int, event: Transition | None) -> bool:
        known = self.known[process]
        if event is None or known.position != self.log[-1].position:
            return False
        self.log.append(after(event, self.clock, known.position + 1, "x"))
        self.known[process] = self.log[-1]
        return True

    @rule(process=st.sampled_from(PROCESSES))
    def sees_what_is_there(self, process: int) -> None:
        self.known[process] = self.log[-1]

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 8.0, 9.5, 12.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.under_way = {id: call for id, call in self.under_way.items() if call[1] > self.clock}

    @rule(process=st.sampled_from(PROCESSES), chance=st.floats(0, 0.99))
    def opens(self, process: int, chance: float) -> None:
        known = self.known[process]
        self.append(
            process,
            trip(known, POLICY, by=f"{process}", now=self.clock, chance=chance, failures=9, calls=9, problem=SICK),
        )

    @rule(process=st.sampled_from(PROCESSES), skew_s=st.sampled_from([-0.9, 0.0, 0.9]))
    def asks_to_be_let_through(self, process: int, skew_s: float) -> None:
        self.count += 1
        id, known = f"p{self.count}", self.known[process]
        now = self.clock + timedelta(seconds=skew_s)
        try:
            event = probe(known, POLICY, by=f"{process}", now=now, chance=0.5, id=id)
        except CircuitOpen:
            return
        if self.append(process, event):
            self.under_way[id] = (process, self.clock + timedelta(seconds=POLICY.probe_s))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), how=st.sampled_from(["well", "badly", "nobody knows"]))
    def a_probe_ends(self, data: st.DataObject, how: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.under_way)))
        process, _ = self.under_way.pop(id)
        # On a conflict it reads and decides again: as if it had known.
        self.known[process] = known = self.log[-1]
        by, now = f"{process}", self.clock
        match how:
            case "well":
                self.append(process, succeeded(known, by=by, probe=id))
            case "badly":
                self.append(process, failed(known, POLICY, by=by, now=now, chance=0.5, probe=id, problem=SICK))
            case _:
                self.append(process, abandoned(known, by=by, now=now, probe=id))

    @invariant()
    def never_two_probes(self) -> None:
        assert len(self.under_way) <= 1

    @invariant()
    def somebody_may_try_some_day(self) -> None:
        assert self.log[-1].admits(self.clock + timedelta(seconds=60))


Processes.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestProcesses = Processes.TestCase
