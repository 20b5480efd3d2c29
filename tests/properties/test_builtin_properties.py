"""What projections say of a run is what the run is: held against its state, on whatever way it came there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import settings

from bus.format.envelope import Envelope, envelope
from bus.history.happening import Happening
from bus.rules import dead
from bus.rules.commands import Command
from bus.rules.dead import LETTER, DeadLetter
from bus.rules.events import COMMIT, Commit
from projections.agents import AGENTS
from projections.letters import DEAD, standing
from projections.projection import MEMORY, Projection, View, fold
from projections.traffic import TRAFFIC
from projections.underway import Underway
from tests.properties.test_run_machine import RUN, RunMachine


class Watched(RunMachine):
    """The machine of all that can happen to a run, with projections beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, View[Any]] = {}
        self.told = self.died = 0
        self.position = 0

    def fire(self, command: Command) -> bool:
        decided = super().fire(command)
        if self.told < len(self.commits):
            commits, self.told = self.commits[self.told :], len(self.commits)
            letters, self.died = self.letters[self.died :], len(self.letters)
            self.tell(commits, letters)
            self.compare()
        return decided

    def tell(self, commits: Sequence[Commit], letters: Sequence[DeadLetter]) -> None:
        happened: list[Happening] = []
        for commit in commits:
            self.position += 1
            placed = msgspec.structs.replace(commit, position=self.position)
            message = _message(COMMIT, {}, commit.id, commit)
            happened += [
                Happening(
                    position=self.position,
                    subject=f"bus.run.{RUN}",
                    stored_at=commit.at,
                    index=index,
                    message=message,
                    commit=placed,
                    event=event,
                )
                for index, event in enumerate(commit.events)
            ]
        for letter in letters:
            self.position += 1
            message = _message(LETTER, letter, dead.name_of(letter), commits[-1])
            happened.append(
                Happening(position=self.position, subject="bus.dead.work", stored_at=commits[-1].at, message=message)
            )
        for each in (TRAFFIC, AGENTS, DEAD):
            self.views[each.name] = _folded(each, self.views.get(each.name, View()), happened)

    def compare(self) -> None:
        held = {
            phase.key if item.index is None else f"{phase.key}:{item.index}": (attempt.number, attempt.instance)
            for phase, item, attempt in self.state.held()
        }
        known = self.views["traffic"].rows[MEMORY + RUN]
        assert isinstance(known, Underway)
        assert {place: (each.attempt, each.instance) for place, each in known.held.items()} == held
        shown = _shown(self.views["agents"])
        assert sum(row.held for row in shown.values()) == len(held)
        assert sum(row.held for row in _shown(self.views["traffic"]).values()) == len(held)
        expected = {dead.name_of(each): dead.standing(each, self.state) for each in self.letters}
        runs = {RUN: self.state}
        assert {id: standing(row, runs) for id, row in _shown(self.views["dead"]).items()} == expected


def _folded(projection: Projection[Any], view: View[Any], happened: Sequence[Happening]) -> View[Any]:
    after = fold(projection, view, happened)
    assert not after.asides
    return after


def _shown(view: View[Any]) -> dict[str, Any]:
    return {key: row for key, row in view.rows.items() if not key.startswith(MEMORY)}


def _message(kind: str, data: object, id: str, commit: Commit) -> Envelope:
    return envelope(kind, data, id=id, source="/test", time=commit.at, runid=RUN, correlationid=RUN)


TestWatched = Watched.TestCase
TestWatched.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
