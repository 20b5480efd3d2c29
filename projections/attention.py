"""Attention: what somebody should look at, across all runs, each with its cause and the command to type.

"Stuck" is a diagnosis made here, never a status in the log: it depends on who is alive, on the past and on the time.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

import msgspec
from msgspec.structs import replace

from bus.rules.route import need
from bus.rules.run import Attempt, Item, PhaseState, RunState
from projections.history import History

Kind = Literal["stuck", "starved", "waiting", "failed", "paused", "retrying"]
Reason = Literal[
    "approval",
    "breaker_open",
    "dead",
    "failed",
    "frozen",
    "lock",
    "loop_blocked",
    "mute",
    "overdue",
    "paused",
    "retrying",
    "run_overdue",
    "signal",
    "silent",
    "slow",
    "starved",
    "unserved",
]
"""The class of a cause, in the words of the doctor (`projections.doctor.finding`), who tells more of them apart."""
_URGENCY: tuple[Kind, ...] = ("stuck", "starved", "waiting", "failed", "paused", "retrying")

_QUIET_TIMES = 3
_PATIENCE_S = 5.0
"""Younger than this, nothing is held against anybody: agents start, beats are on their way."""


class Concern(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that needs a look: since when, why (its class, and one sentence), and the exact command that helps.

    Without a phase it is about the run as a whole. Where several items of a phase have the same trouble, the one
    that has had it longest is named and `others` counts the rest.
    """

    run: str
    kind: Kind
    reason: Reason
    since: datetime
    cause: str
    next_step: str
    phase: str | None = None
    item: int | None = None
    others: int = 0


class Mute(msgspec.Struct, frozen=True):
    """Why an instance that is connected does not answer."""

    reason: Literal["frozen", "loop_blocked", "mute"]
    cause: str
    next_step: str


class Wait(msgspec.Struct, frozen=True):
    """What an attempt waits for that somebody else has: `what`, such as `lock 'deploy'`, its path, and who has it."""

    what: str
    path: str
    holder: str = ""

    @property
    def cause(self) -> str:
        return f"{self.what}, which {self.holder or 'somebody else'} has"

    @property
    def next_step(self) -> str:
        # Which of the permits is to be given back, somebody has to choose.
        return "phasebus lock ls" if self.path.startswith("permit.") else f"phasebus lock break {self.path}"


Place = tuple[str, str, int | None, int]
"""An attempt: run, phase, item, number."""


class Living(msgspec.Struct, frozen=True):
    """Who is there: the instances that answer, and the capabilities that any of them offers, those of arms included.

    As far as it is known also the capabilities whose places are all taken (`full`); who is `mute`, and why; when
    attempts under way `said` something of themselves, and what they wait for (`waits`); and the capabilities of which
    nobody takes any work while their breaker is open, with what is to be said of that (`resting`).
    """

    instances: Set[str]
    capabilities: Set[str]
    full: Set[str] = frozenset()
    mute: Mapping[str, Mute] = {}
    said: Mapping[Place, Sequence[datetime]] = {}
    waits: Mapping[Place, Wait] = {}
    resting: Mapping[str, str] = {}


def concerns(runs: Iterable[RunState], living: Living | None, history: History, now: datetime) -> list[Concern]:
    """What needs a look, most urgent kind first, then what has waited longest.

    With `living` None nobody knows who is there, and nothing is concluded from an absence.
    """
    found = [concern for state in runs for concern in _of_run(state, living, history, now)]
    return sorted(found, key=lambda concern: (_URGENCY.index(concern.kind), concern.since, concern.run))


def _of_run(state: RunState, living: Living | None, history: History, now: datetime) -> Iterator[Concern]:
    if state.status == "failed" and not state.archived:
        yield _failed(state)
    if not state.is_open:
        return
    if now > state.deadline_at:
        yield Concern(
            run=state.run,
            kind="stuck",
            reason="run_overdue",
            since=state.deadline_at,
            cause="the run is past its deadline and nobody has ended it: is a supervisor running?",
            next_step="phasebus up",
        )
    if state.paused_at is not None:
        yield Concern(
            run=state.run,
            kind="paused",
            reason="paused",
            since=state.paused_at,
            cause=f"paused by {state.paused_by}: nothing more of it is taken",
            next_step=f"phasebus run resume {state.run}",
        )
    for phase in state.phases.values():
        if phase.status == "waiting" and not phase.child:
            yield _waiting(state, phase)
        elif phase.status in {"ready", "in_progress"}:
            yield from _grouped(_of_item(state, phase, item, living, history, now) for item in phase.items)


def _grouped(found: Iterable[Concern | None]) -> Iterable[Concern]:
    """One concern of each kind: the oldest, with the number of others."""
    oldest: dict[Kind, Concern] = {}
    for concern in found:
        if concern is not None:
            first = oldest.get(concern.kind)
            if first is None:
                oldest[concern.kind] = concern
            else:
                older = min(first, concern, key=lambda each: each.since)
                oldest[concern.kind] = replace(older, others=first.others + 1)
    return oldest.values()


def _of_item(
    state: RunState, phase: PhaseState, item: Item, living: Living | None, history: History, now: datetime
) -> Concern | None:
    if item.holder is not None:
        return _stuck(state, phase, item, item.holder, living, history, now)
    if item.status != "ready" or item.ready_at is None or state.paused_at is not None:
        return None
    if item.ready_at > now:
        return _retrying(state, phase, item)
    capability = state.capability(phase.key)
    if living is None or capability is None:
        return None
    needed = need(capability, item.arm)
    if capability in living.resting:
        return Concern(
            run=state.run,
            kind="waiting",
            reason="breaker_open",
            since=item.ready_at,
            phase=phase.key,
            item=item.index,
            cause=f"nobody takes work of {capability!r} while its breaker is open{living.resting[capability]}",
            next_step=f"phasebus breaker close {capability}",
        )
    is_full = needed in living.full
    if (needed in living.capabilities and not is_full) or _age_s(item.ready_at, now) < _PATIENCE_S:
        return None
    return Concern(
        run=state.run,
        kind="starved",
        reason="starved" if is_full else "unserved",
        since=item.ready_at,
        phase=phase.key,
        item=item.index,
        cause=(f"all places for {capability!r} are taken" if is_full else f"no live agent offers {capability!r}")
        + (f" of version {item.arm.versions}" if item.arm else ""),
        next_step=f"phasebus route show {capability}" if item.arm else "phasebus agent run FILE.py:agent",
    )


def _stuck(
    state: RunState,
    phase: PhaseState,
    item: Item,
    holder: Attempt,
    living: Living | None,
    history: History,
    now: datetime,
) -> Concern | None:
    age_s = _age_s(holder.started_at, now)
    past = history.of(state.plan, phase.key)
    limit_s = past.limit_s if past is not None else None
    who = f"attempt {holder.number} on {holder.instance}"
    since, next_step = holder.started_at, "phasebus up"
    kind: Kind = "stuck"
    reason: Reason
    if living is not None and (mute := living.mute.get(holder.instance)) is not None:
        reason, cause, next_step = mute.reason, f"{mute.cause}; it holds {who}", mute.next_step
    elif age_s < _PATIENCE_S:
        return None
    elif living is not None and holder.instance not in living.instances:
        reason, cause = "dead", f"process gone: {who} does not answer, and nobody has taken the work back"
    elif now > holder.deadline_at:
        since, reason = holder.deadline_at, "overdue"
        cause = f"past its deadline: {who} has run for {_in_words(age_s)}, and nobody has ended it"
    elif living is not None and (wait := living.waits.get((state.run, phase.key, item.index, holder.number))):
        kind, reason, cause, next_step = "waiting", "lock", f"{who} waits for {wait.cause}", wait.next_step
    elif living is not None and (silence := silence_of(state, phase, item, holder, living.said, now)) is not None:
        reason, cause, next_step = "silent", f"silent: {who} {silence}", f"phasebus run why {state.run} {phase.key}"
    elif past is not None and limit_s is not None and age_s > limit_s:
        reason = "silent" if past.talks and not holder.has_spoken else "slow"
        longest = f"the longest of {past.attempt.count} took {_in_words(past.attempt.longest_s)}"
        cause = f"slower than ever before: {who} has run for {_in_words(age_s)}; {longest}"
        if reason == "silent":
            cause = f"silent: {who} has said nothing for {_in_words(age_s)}, as others of it do; {longest}"
        next_step = f"phasebus run show {state.run}"
    else:
        return None
    return Concern(
        run=state.run,
        kind=kind,
        reason=reason,
        since=since,
        phase=phase.key,
        item=item.index,
        cause=cause,
        next_step=next_step,
    )


def silence_of(
    state: RunState,
    phase: PhaseState,
    item: Item,
    holder: Attempt,
    said: Mapping[Place, Sequence[datetime]],
    now: datetime,
) -> str | None:
    """What is to be said of a handler that used to say something of itself, and does not any more."""
    words = said.get((state.run, phase.key, item.index, holder.number), ())
    longest = max((later - earlier for earlier, later in pairwise([holder.started_at, *words])), default=None)
    if longest is None or now - words[-1] <= max(_QUIET_TIMES * longest, timedelta(seconds=_PATIENCE_S)):
        return None
    return (
        f"lives, and has said nothing for {_in_words(_age_s(words[-1], now))}, at {holder.fraction:.0%}; before, never "
        f"longer than {_in_words(longest.total_seconds())}"
    )


def _retrying(state: RunState, phase: PhaseState, item: Item) -> Concern | None:
    """Ready for later: only an attempt that failed makes that."""
    tries = item.attempts[item.earlier :]
    if not tries or tries[-1].ended_at is None or item.ready_at is None:
        return None
    return Concern(
        run=state.run,
        kind="retrying",
        reason="retrying",
        since=tries[-1].ended_at,
        phase=phase.key,
        item=item.index,
        cause=f"attempt {tries[-1].number} failed ({tries[-1].problem}); the next is due {_clock(item.ready_at)}",
        next_step=f"phasebus run show {state.run}",
    )


def _waiting(state: RunState, phase: PhaseState) -> Concern:
    node = state.plan.graph[phase.key].phase
    assert phase.opened_at is not None, "only an opened gate waits"
    until = f", until {_clock(phase.expires_at)}" if phase.expires_at is not None else ""
    asked = f" of {' or '.join(phase.asked)}" if phase.asked else ""
    cause = f"waits for an answer{asked}{until}"
    if node.signal is not None:
        cause = f"waits for signal {node.signal.signal!r}{until}"
    prompt = f": {node.approval.prompt}" if node.approval is not None and node.approval.prompt else ""
    return Concern(
        run=state.run,
        kind="waiting",
        reason="approval" if node.signal is None else "signal",
        since=phase.opened_at,
        phase=phase.key,
        cause=cause + prompt,
        next_step=opening(state, phase),
    )


def opening(state: RunState, phase: PhaseState) -> str:
    """The command that opens a gate, or shows the run that does."""
    if phase.child:
        return f"phasebus run follow {phase.child}"
    signal = state.plan.graph[phase.key].phase.signal
    if signal is not None:
        return f"phasebus run signal {state.run} {signal.signal}"
    # A key may be a negative number, which a command line takes for an option.
    return f"phasebus run approve {state.run} {'-- ' if phase.key.startswith('-') else ''}{phase.key}"


def settling(state: RunState, phase: PhaseState, item: Item, effect: str) -> str:
    """The command that says what became of an effect nobody knows of."""
    place = phase.key if item.index is None else f"{phase.key}:{item.index}"
    end_of_options = "-- " if phase.key.startswith("-") else ""
    words = " ".join(shlex.quote(word) for word in (state.run, place, effect))
    return f"phasebus run effect settle --outcome JSON {end_of_options}{words}"


def _failed(state: RunState) -> Concern:
    assert state.ended_at is not None, "a failed run has ended"
    failed = [phase for phase in state.phases.values() if phase.status == "failed"]
    # Work that was given up left a dead letter, which shows what it was; a rejection or a deadline did not.
    is_work = any(state.plan.graph[phase.key].phase.capability is not None for phase in failed)
    unknown = next(state.unknown(), None)
    next_step = "phasebus dead ls" if is_work else f"phasebus run redrive {state.run}"
    return Concern(
        run=state.run,
        kind="failed",
        reason="failed",
        since=state.ended_at,
        phase=failed[0].key if len(failed) == 1 else None,
        cause=str(state.problem),
        # Before it can go on, somebody has to find out what happened.
        next_step=next_step if unknown is None else settling(state, *unknown),
    )


def _age_s(since: datetime, now: datetime) -> float:
    return (now - since).total_seconds()


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _in_words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
