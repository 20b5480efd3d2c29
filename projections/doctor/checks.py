"""All checks, in the order in which their findings are told if they weigh the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from projections.doctor import attempts, crew, ground, work
from projections.doctor.facts import Facts
from projections.doctor.finding import Finding, ordered

CHECKS: Sequence[Callable[[Facts], Iterator[Finding]]] = (
    ground.reach,
    ground.streams,
    work.missing,
    ground.disk,
    ground.clocks,
    crew.supervisor,
    attempts.poison,
    attempts.under_way,
    crew.mutes,
    crew.resting,
    attempts.silenced,
    work.letters,
    work.attention,
    work.untaken,
    work.breakers,
    work.limits,
    work.children,
    ground.system_login,
)


def diagnose(facts: Facts) -> list[Finding]:
    """What is wrong, the most important first; nothing if all is well."""
    return ordered((finding for check in CHECKS for finding in check(facts)), facts.run)
