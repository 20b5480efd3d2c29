"""Checks of the attempts under way: dead, frozen, blocked, forgotten, silent, overdue, or merely slow; and poison."""

from __future__ import annotations

from collections.abc import Iterator

from bus.rules.run import Attempt, Item, PhaseState, RunState
from projections.attention import silence_of
from projections.doctor.crew import muteness
from projections.doctor.facts import Facts
from projections.doctor.finding import Code, Finding, Weight

_PATIENCE_S = 5.0
"""Younger than this, what is known of whom may be on its way."""
_LETHAL = 2


def under_way(facts: Facts) -> Iterator[Finding]:
    """What keeps each attempt that is held."""
    for state in facts.runs:
        if state.is_open:
            for phase, item, holder in state.held():
                found = _held(facts, state, phase, item, holder)
                if found is not None:
                    yield found


def silenced(facts: Facts) -> Iterator[Finding]:
    """Handlers that were ended because they said nothing of themselves, and are tried again."""
    for state in facts.runs:
        for phase in state.phases.values() if state.is_open else ():
            for item in phase.items if phase.status in ("ready", "in_progress") else ():
                ended = [each for each in item.attempts[item.earlier :] if each.ended_at is not None]
                if ended and ended[-1].cause == "silent" and item.status in ("ready", "in_progress"):
                    place, last = _place(phase, item), ended[-1]
                    cause = (
                        f"handler silent: attempt {last.number} of {place} on {last.instance} was ended because it "
                        "said nothing for too long; it is tried again"
                    )
                    yield _finding("silent", cause, f"phasebus run why {state.run} {place}", state, phase, item)


def poison(facts: Facts) -> Iterator[Finding]:
    """Work that has ended the process of everybody who took it."""
    for state in facts.runs:
        for phase in state.phases.values():
            for item in phase.items:
                died = _crashes(item)
                if died >= _LETHAL and phase.status not in ("completed", "skipped", "cancelled"):
                    last = item.attempts[-1]
                    cause = (
                        f"poison: {_place(phase, item)} of run {state.run} has crashed the process that ran it "
                        f"{died} times in a row, last on {last.instance}"
                    )
                    yield _finding("poison", cause, f"phasebus run skip {state.run} {_key(phase)}", state, phase, item)


def _held(facts: Facts, state: RunState, phase: PhaseState, item: Item, holder: Attempt) -> Finding | None:
    age_s = (facts.at - holder.started_at).total_seconds()
    who = f"attempt {holder.number} of {_place(phase, item)} on {holder.instance}"
    member = facts.members.get(holder.instance) if facts.members is not None else None
    unled = facts.lead is not None and not facts.lead.leader
    if facts.members is not None and (member is None or member.life == "gone"):
        if age_s < _PATIENCE_S and not unled:
            return None
        because = "and no supervisor leads that would take it back" if unled else "and nobody has taken it back"
        return _finding(
            "dead", f"instance dead: {who} has no process any more, {because}", "phasebus up", state, phase, item
        )
    if member is not None and member.life == "mute":
        mute = muteness(member)
        return _finding(mute.reason, f"{mute.cause}; it holds {who}", mute.next_step, state, phase, item)
    if (facts.at - holder.deadline_at).total_seconds() > _PATIENCE_S:
        cause = f"past its deadline: {who} has run for {_words(age_s)}, and nobody has ended it"
        return _finding("overdue", cause, "phasebus up", state, phase, item)
    key = (state.run, phase.key, item.index, holder.number)
    if member is not None and key not in member.held and age_s > _PATIENCE_S:
        cause = f"attempt forgotten: {holder.instance} lives, and does not hold {who} any more"
        return _finding("forgotten", cause, "phasebus up", state, phase, item)
    wait = facts.waits.get(key)
    if wait is not None:
        cause = f"waits for a lock: {who} waits for {wait.cause}"
        return _finding("lock", cause, wait.next_step, state, phase, item, weight="waiting")
    return _quiet(facts, state, phase, item, holder) or _slow(facts, state, phase, item, holder)


def _quiet(facts: Facts, state: RunState, phase: PhaseState, item: Item, holder: Attempt) -> Finding | None:
    """A handler that used to say something of itself, and does not any more; or that others of it did, and it does not
    when it should be done."""
    silence = silence_of(state, phase, item, holder, facts.said, facts.at)
    if silence is None:
        return _speechless(facts, state, phase, item, holder)
    cause = f"handler silent: attempt {holder.number} of {_place(phase, item)} on {holder.instance} {silence}"
    return _finding("silent", cause, f"phasebus run why {state.run} {_place(phase, item)}", state, phase, item)


def _speechless(facts: Facts, state: RunState, phase: PhaseState, item: Item, holder: Attempt) -> Finding | None:
    past = facts.history.of(state.plan, phase.key)
    age_s = (facts.at - holder.started_at).total_seconds()
    if past is None or past.limit_s is None or age_s <= past.limit_s or not past.talks or holder.has_spoken:
        return None
    cause = (
        f"handler silent: attempt {holder.number} of {_place(phase, item)} on {holder.instance} lives, and has said "
        f"nothing for {_words(age_s)}, as others of it do; the longest of {past.attempt.count} took "
        f"{_words(past.attempt.longest_s)}"
    )
    return _finding("silent", cause, f"phasebus run why {state.run} {_place(phase, item)}", state, phase, item)


def _slow(facts: Facts, state: RunState, phase: PhaseState, item: Item, holder: Attempt) -> Finding | None:
    past = facts.history.of(state.plan, phase.key)
    age_s = (facts.at - holder.started_at).total_seconds()
    if past is None or past.limit_s is None or age_s <= past.limit_s:
        return None
    cause = (
        f"merely slow: attempt {holder.number} of {_place(phase, item)} on {holder.instance} lives and has run for "
        f"{_words(age_s)}; the longest of {past.attempt.count} took {_words(past.attempt.longest_s)}"
    )
    return _finding("slow", cause, f"phasebus run follow {state.run}", state, phase, item, weight="waiting")


def _crashes(item: Item) -> int:
    """How many attempts of this pass, the last ones, ended with the process that made them."""
    count = 0
    for attempt in reversed(item.attempts[item.earlier :]):
        if attempt.cause != "crashed":
            if attempt.ended_at is None:
                continue
            break
        count += 1
    return count


def _finding(
    code: Code, cause: str, next_step: str, state: RunState, phase: PhaseState, item: Item, *, weight: Weight = "stuck"
) -> Finding:
    return Finding(
        code=code,
        weight=weight,
        cause=cause,
        next_step=next_step,
        run=state.run,
        phase=phase.key,
        item=item.index,
    )


def _place(phase: PhaseState, item: Item) -> str:
    return phase.key if item.index is None else f"{phase.key}:{item.index}"


def _key(phase: PhaseState) -> str:
    # A key may be a negative number, which a command line takes for an option.
    return f"{'-- ' if phase.key.startswith('-') else ''}{phase.key}"


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
