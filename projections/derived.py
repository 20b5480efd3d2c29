"""Derived projections: rows that follow from those of others and from the time. Nothing of them is kept.

What needs a look, and how far a run is, changes while nothing happens: the kept rows hold every instant that matters
(when something began, is due, is over), and are looked at as of a time. So what was true at any position or time in the
past can be asked as well, and it is the same whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic

import msgspec

from projections.agents import AGENTS, Instance
from projections.attention import Concern, Living, concerns
from projections.breakers import BREAKERS, Tripping
from projections.history import learn
from projections.progress import Progress, progress
from projections.projection import Projection, R
from projections.runs import RUNS

Kept = Mapping[str, Mapping[str, Any]]
"""The rows of each projection that it follows from, by name and key."""

_THERE = ("registered", "draining", "quarantined")


class Derived(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """A name, a kind of row, the projections it is `of`, and what follows from their rows at an instant."""

    name: str
    row: Any
    of: Sequence[Projection[Any]]
    derive: Callable[[Kept, datetime], dict[str, R]]


def _attention(kept: Kept, at: datetime) -> dict[str, Concern]:
    runs = kept["runs"]
    there = [each for each in kept["agents"].values() if isinstance(each, Instance) and each.health in _THERE]
    taking = [each for each in there if each.health == "registered"]
    breakers = [each.state for each in kept["breakers"].values() if isinstance(each, Tripping)]
    living = Living(
        {each.instance for each in there},
        {name for each in taking for name in each.capabilities},
        resting={each.breaker: "" for each in breakers if each.status == "open"},
    )
    return {_key(each): each for each in concerns(runs.values(), living, learn(runs.values()), at)}


def _progress(kept: Kept, at: datetime) -> dict[str, Progress]:
    runs = kept["runs"]
    history = learn(runs.values())
    return {run: progress(state, history, at) for run, state in runs.items()}


def _key(concern: Concern) -> str:
    """What it is about, and the class of its cause: `RUN/PHASE:ITEM/dead`, `RUN/run_overdue`."""
    item = "" if concern.item is None else f":{concern.item}"
    place = "" if concern.phase is None else f"/{concern.phase}{item}"
    return f"{concern.run}{place}/{concern.reason}"


ATTENTION: Derived[Concern] = Derived(name="attention", row=Concern, of=(RUNS, AGENTS, BREAKERS), derive=_attention)
"""What somebody should look at, the most urgent first, as far as the log says who is there: an instance whose end
nobody has noticed counts as there. `phasebus attention` asks them."""

PROGRESS: Derived[Progress] = Derived(name="progress", row=Progress, of=(RUNS,), derive=_progress)
"""How far each run is and how long it will take, by its id."""
