"""The plans that chaos runs: sequential, fanned out, side by side, with what hangs, and with what never works."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from bus import Phase, Plan, Retry, ref
from bus.rules.references import Ref

# Chaos ends attempts far more often than any plan allows for: giving up is not what is tried here.
PATIENT = Retry(lost=100, transient=100, unknown=100, dependency=100, lost_s=0.1, transient_s=0.1, max_s=1.0)
_MIX = ("quick", "slow", "flaky", "quick", "thread", "quick", "flaky", "slow")
_SHARES = {"chain": 6, "fan": 6, "side by side": 5, "hanging": 2, "doomed": 1}


def plans(phases: int, lease_s: float) -> Mapping[str, Plan]:
    """One plan of each kind, each of so many phases (4 at least)."""
    keys = range(phases)
    chain = [_phase(key, _MIX[key % len(_MIX)], after=[key - 1] if key else []) for key in keys]
    fan = [_phase(0, "split")]
    for key in keys[1:]:
        kind = _MIX[key % len(_MIX)]
        fan.append(_phase(key, kind, after=[key - 1], each=ref("0") if key % 3 == 1 else None))
    middle = list(keys[1:-1])
    beside = [
        _phase(0, "quick"),
        *(_phase(key, _MIX[key % len(_MIX)], after=[0]) for key in middle),
        _phase(phases - 1, "quick", after=middle),
    ]
    silent, block = _phase(phases - 2, "silent", after=[phases - 3]), _phase(phases - 1, "block", s=2 * lease_s)
    hanging = [*chain[:-2], silent, block]
    doomed = [*chain[:-1], _phase(phases - 1, "reject", after=[phases - 2])]
    made = {"chain": chain, "fan": fan, "side by side": beside, "hanging": hanging, "doomed": doomed}
    return {name: Plan(name.replace(" ", "-"), phases=made[name]) for name in _SHARES}


def drawn(seed: int, runs: int) -> list[str]:
    """Which plan each run has."""
    return random.Random(f"plans {seed}").choices(list(_SHARES), list(_SHARES.values()), k=runs)


def _phase(key: int, kind: str, *, after: Sequence[int] = (), each: Ref | None = None, s: float | None = None) -> Phase:
    plain = Phase(key, f"chaos.{kind}", input={"s": s}, after=after, retry=PATIENT, timeout_s=30.0)
    return plain if each is None else replace(plain, each=each, width=4)
