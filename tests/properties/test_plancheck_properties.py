"""Hindsight: whatever was done to a run, asking all of it again of the same plan leads to the same."""

from __future__ import annotations

from hypothesis import settings

from bus.plancheck import check
from tests.properties.test_run_machine import RunMachine


class Replayed(RunMachine):
    def teardown(self) -> None:
        if self.commits:
            replayed = check(self.commits, self.state.plan)
            assert replayed.outcome == "unaffected", replayed.findings


TestReplayed = Replayed.TestCase
TestReplayed.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
