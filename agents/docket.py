"""The docket: the runs that are open, when each is due, and who holds what. Folded from the log, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from bus.rules.run import RunState
from bus.rules.timers import Timer, armed

Key = tuple[str, str, int | None, int]
"""An attempt: run, phase, item, number."""


class Docket:
    """Every open run as of what has been noted."""

    def __init__(self) -> None:
        self._open: dict[str, RunState] = {}
        self._began: dict[str, int] = {}
        self._timers: dict[str, list[Timer]] = {}
        self._holds: dict[str, set[Key]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def get(self, run: str) -> RunState | None:
        """The run, if it is open."""
        return self._open.get(run)

    def __iter__(self) -> Iterator[RunState]:
        """Every open run."""
        return iter(list(self._open.values()))

    def open_runs(self) -> Iterator[str]:
        """The names of all of them."""
        return iter(self._open)

    def note(self, state: RunState, position: int) -> None:
        """A run is as `state` says since the commit at `position`. If this raises, nothing has changed."""
        timers = sorted(armed(state))
        before, after = _held(self._open.get(state.run)), _held(state)
        for instance, key in before - after:
            self._holds[instance].discard(key)
            if not self._holds[instance]:
                del self._holds[instance]
        for instance, key in after - before:
            self._holds.setdefault(instance, set()).add(key)
        if state.is_open:
            self._open[state.run], self._timers[state.run] = state, timers
            self._began.setdefault(state.run, position)
        else:
            for known in (self._open, self._timers, self._began):
                known.pop(state.run, None)

    def take_due(self, now: datetime) -> Iterator[tuple[RunState, list[Timer]]]:
        """The timers whose time has come, each once (see `arm`)."""
        for run, timers in self._timers.items():
            if timers and timers[0].at <= now:
                due = [timer for timer in timers if timer.at <= now]
                del timers[: len(due)]
                yield self._open[run], due

    def arm(self, run: str) -> None:
        """Set a run's timers anew: what was due and could not be done is due again."""
        if run in self._open:
            self._timers[run] = sorted(armed(self._open[run]))

    def ready_since(self, before: datetime) -> Iterator[tuple[RunState, Timer]]:
        """Every item that could have been taken since before then, and was not."""
        for state in self._open.values():
            yield from ((state, timer) for timer in armed(state) if timer.kind == "dispatch" and timer.at < before)

    @property
    def holders(self) -> list[str]:
        """Every instance that holds an attempt."""
        return list(self._holds)

    def held_by(self, instance: str) -> list[Key]:
        return list(self._holds.get(instance, ()))

    def floor(self, position: int) -> int:
        """The position up to which every run has ended, `position` being what was read last."""
        return min(self._began.values(), default=position + 1) - 1


def _held(state: RunState | None) -> set[tuple[str, Key]]:
    if state is None or not state.is_open:
        return set()
    return {
        (attempt.instance, (state.run, phase.key, item.index, attempt.number)) for phase, item, attempt in state.held()
    }
