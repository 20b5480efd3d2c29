"""Every projection that ships, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projections.projection import Projection
from projections.runs import RUNS

BUILT_IN: Mapping[str, Projection[Any]] = {each.name: each for each in (RUNS,)}
