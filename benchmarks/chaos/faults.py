"""The schedule of faults: what is done to whom, when and for how long. It follows from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec

Kind = Literal[
    "kill worker",
    "freeze worker",
    "stop worker",
    "kill leader",
    "kill standby",
    "freeze leader",
    "kill server",
    "freeze server",
    "stop server",
    "lose work",
    "kill all",
]
_WEIGHTS: dict[Kind, int] = {
    "kill worker": 8,
    "freeze worker": 5,
    "stop worker": 4,
    "kill leader": 3,
    "kill standby": 1,
    "freeze leader": 3,
    "kill server": 3,
    "freeze server": 1,
    "stop server": 1,
    "lose work": 1,
    "kill all": 1,
}
_MEAN_GAP_S = 1.2
# A frozen server is a fault for everybody at once: short, or nothing else would be tried.
_FROZEN_SERVER_S = 2.0


class Fault(msgspec.Struct, frozen=True):
    """At `at_s` from the beginning, for `lasts_s`: frozen for so long, or so long until it is started again."""

    at_s: float
    kind: Kind
    target: int
    lasts_s: float

    def __str__(self) -> str:
        who = f" {self.target}" if self.kind.endswith("worker") else ""
        return f"{self.at_s:7.2f} s  {self.kind}{who}, {self.lasts_s:.2f} s"


def schedule(seed: int, seconds: float, workers: int, lease_s: float) -> Sequence[Fault]:
    """The faults of `seconds`, in order. Freezes last up to two and a half leases: some are noticed."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    at_s = 0.0
    while (at_s := at_s + chance.expovariate(1 / _MEAN_GAP_S)) < seconds:
        [kind] = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        longest_s = 1.5
        if kind.startswith("freeze"):
            longest_s = _FROZEN_SERVER_S if kind == "freeze server" else 2.5 * lease_s
        faults.append(Fault(at_s, kind, chance.randrange(workers), chance.uniform(0.1, longest_s)))
    return faults
