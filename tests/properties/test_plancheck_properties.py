"""Hindsight: whatever was done to a run, asking all of it again of the same plan leads to the same."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import initialize

from bus.replay.plancheck import check
from bus.rules.plan import Plan
from tests.properties.test_run_machine import RunMachine, plans


class Replayed(RunMachine):
    def __init__(self) -> None:
        super().__init__()
        self.other: Plan | None = None

    @initialize(other=plans())
    def know_another_plan(self, other: Plan) -> None:
        self.other = other

    def teardown(self) -> None:
        if not self.commits:
            return
        replayed = check(self.commits, self.state.plan)
        assert replayed.outcome == "unaffected", replayed.findings
        if self.other is not None:
            # Whatever the other is, there is an answer.
            found = check(self.commits, self.other)
            assert (found.outcome == "unaffected") == (not found.findings)


TestReplayed = Replayed.TestCase
TestReplayed.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
