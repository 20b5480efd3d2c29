"""Every projection that ships, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projections.agents import AGENTS
from projections.breakers import BREAKERS
from projections.causes import CAUSES
from projections.derived import ATTENTION, PROGRESS, Derived
from projections.failures import FAILURES
from projections.letters import DEAD
from projections.locks import LOCKS
from projections.projection import Projection
from projections.runs import RUNS
from projections.spend import SPEND
from projections.traffic import TRAFFIC

BUILT_IN: Mapping[str, Projection[Any]] = {
    each.name: each for each in (RUNS, TRAFFIC, AGENTS, FAILURES, DEAD, CAUSES, SPEND, LOCKS, BREAKERS)
}

DERIVED: Mapping[str, Derived[Any]] = {each.name: each for each in (ATTENTION, PROGRESS)}
"""Those that are not kept, but follow from kept ones when they are asked."""
