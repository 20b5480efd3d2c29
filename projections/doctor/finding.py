"""A finding: one thing that is wrong, its cause in a sentence, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec.structs import replace

Code = Literal[
    # The way there, the server, its streams.
    "nowhere",
    "unreachable",
    "refused",
    "mute",
    "no_jetstream",
    "log_lost",
    "wrong_namespace",
    "work_lost",
    "stream_wrong",
    "unwritable",
    "nearly_full",
    "not_synced",
    "small_payload",
    "clock_skew",
    "no_system_login",
    # Who is there.
    "supervisor_frozen",
    "no_supervisor",
    "quarantined",
    "draining",
    "capability_paused",
    # An attempt under way. An instance that is `mute` is frozen or its loop is blocked, and nobody here can tell.
    "dead",
    "frozen",
    "loop_blocked",
    "overdue",
    "forgotten",
    "silent",
    "slow",
    "lock",
    "poison",
    # Work that waits, or was given up.
    "unserved",
    "starved",
    "untaken",
    "in_line",
    "approval",
    "signal",
    "child",
    "breaker_open",
    "budget_spent",
    "limit_held",
    "paused",
    "retrying",
    "run_overdue",
    "failed",
    "dead_letters",
    "no_such_run",
]
"""The kinds of fault."""

Weight = Literal["fatal", "broken", "stuck", "failed", "waiting", "advice"]
_WEIGHTS: tuple[Weight, ...] = ("fatal", "broken", "stuck", "failed", "waiting", "advice")
"""Nothing works; something everybody needs does not; work does not go on; it was given up; it goes on when somebody or
the clock says so; it works, and could be safer."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`code` names the kind of fault, for programs. `others` counts the same in other places. `details` are lines."""

    code: Code
    weight: Weight
    cause: str
    next_step: str
    run: str = ""
    phase: str = ""
    item: int | None = None
    others: int = 0
    details: tuple[str, ...] = ()


def ordered(findings: Iterable[Finding], run: str | None) -> list[Finding]:
    """What weighs most first. What is about the run that was asked about comes before what is not, but for what keeps
    everything from working. Of the same fault in several places the first is named, and the others are counted."""
    first: dict[tuple[str, str], Finding] = {}
    for each in findings:
        # Of the run that was asked about, each phase is worth a line.
        key = (each.code, f"{each.phase}:{each.item}" if each.run and each.run == run else "")
        known = first.get(key)
        first[key] = each if known is None else replace(known, others=known.others + 1 + each.others)

    def rank(each: Finding) -> tuple[bool, bool, int]:
        about_it = run is not None and each.run == run
        return each.weight != "fatal", not about_it, _WEIGHTS.index(each.weight)

    return sorted(first.values(), key=rank)
