"""Checks of work that waits, or was given up: what nobody can take, gates, retries, pauses, breakers, dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from bus.rules.run import PhaseState, RunState
from projections.attention import Concern, Living, concerns
from projections.doctor.crew import takes
from projections.doctor.facts import Facts
from projections.doctor.finding import Finding, Weight

_LATELY = timedelta(minutes=10)
_BUSY_S = 5.0
_WEIGHTS: dict[str, Weight] = {
    "unserved": "stuck",
    "run_overdue": "stuck",
    "failed": "failed",
    "paused": "waiting",
    "retrying": "waiting",
    "approval": "waiting",
    "signal": "waiting",
}
_WORDS = {
    "unserved": "nobody offers the capability",
    "run_overdue": "run past its deadline",
    "failed": "run failed",
    "paused": "run paused",
    "retrying": "retry delayed",
    "approval": "waits for approval",
    "signal": "waits for a signal",
}


def missing(facts: Facts) -> Iterator[Finding]:
    """A run that was asked about, and is not there."""
    if facts.is_missing:
        cause = f"no such run: there is no run {facts.run!r} in this log"
        yield Finding(code="no_such_run", weight="fatal", cause=cause, next_step="phasebus run ls --tasks")


def attention(facts: Facts) -> Iterator[Finding]:
    """What needs a look anyway. What keeps an attempt that is held is told apart elsewhere."""
    living = None
    if facts.members is not None:
        alive = [each for each in facts.members.values() if each.life != "gone"]
        living = Living({each.instance for each in alive}, {name for each in alive for name in each.capabilities})
    for concern in concerns(facts.runs, living, facts.history, facts.at):
        code = _code(facts, concern)
        if code is not None:
            yield Finding(
                code=code,
                weight=_WEIGHTS[code],
                cause=f"{_WORDS[code]}: {_place(concern)}: {concern.cause}",
                next_step=concern.next_step,
                run=concern.run,
                phase=concern.phase or "",
                item=concern.item,
                others=concern.others,
            )


def children(facts: Facts) -> Iterator[Finding]:
    """A phase that waits for another run says which: that is where to look."""
    for state in facts.runs:
        for phase in state.phases.values():
            if state.is_open and phase.status == "waiting" and phase.child and state.run == facts.run:
                cause = f"waits for another run: phase {phase.key} of run {state.run} waits for run {phase.child}"
                yield Finding(
                    code="child",
                    weight="waiting",
                    cause=cause,
                    next_step=f"phasebus doctor {phase.child}",
                    run=state.run,
                    phase=phase.key,
                )


def untaken(facts: Facts) -> Iterator[Finding]:
    """Work that waits although its capability is offered: every place is taken, or it was lost on its way."""
    if facts.members is None:
        return
    resting = {each.breaker for each in facts.breakers if each.status != "closed"}
    for state in facts.runs:
        for phase in state.phases.values() if state.is_open and state.paused_at is None else ():
            capability = state.capability(phase.key)
            alive = [each for each in facts.members.values() if each.life == "alive"]
            places = sum(each.capabilities.get(capability or "", 0) for each in alive)
            if capability is None or not takes(facts, capability) or capability in resting:
                continue
            waiting = [
                item.ready_at
                for item in phase.items
                if item.status == "ready" and item.ready_at is not None and _age_s(facts, item.ready_at) > _BUSY_S
            ]
            if waiting:
                yield _untaken(facts, state, phase, capability, places, waiting)


def _untaken(
    facts: Facts, state: RunState, phase: PhaseState, capability: str, places: int, waiting: list[datetime]
) -> Finding:
    is_full = facts.busy.get(capability, 0) >= places
    since_s = _age_s(facts, min(waiting))
    what = f"{len(waiting)} of phase {phase.key} of run {state.run} wait, the first for {since_s:.0f} s"
    why = f"all {places} places for {capability!r} are taken"
    if not is_full and state.is_in_line:
        return _in_line(facts, state, phase, capability, since_s)
    if not is_full:
        why = f"{capability!r} is offered, and its work was lost on its way, or its agents are draining"
    return Finding(
        code="starved" if is_full else "untaken",
        weight="stuck",
        cause=f"{'starved' if is_full else 'not taken'}: {what}: {why}",
        next_step="phasebus agent run FILE.py:agent (another instance)" if is_full else "phasebus up",
        run=state.run,
        phase=phase.key,
    )


def _in_line(facts: Facts, state: RunState, phase: PhaseState, capability: str, since_s: float) -> Finding:
    """Its place is in the log: it waits for those before it, or behind one of them that died."""
    dead = [each.number for each in facts.letters if each.capability == capability]
    whose = f"the work of {capability!r} with key {state.key!r}"
    cause = f"in line: run {state.run} has waited {since_s:.0f} s for its turn among {whose}"
    if dead:
        cause += f"; work of {capability!r} is dead, and with on_dead='park' holds what has the same key"
    next_step = f"phasebus dead ls --capability {capability}" if dead else "phasebus run ls --tasks"
    return Finding(code="in_line", weight="waiting", cause=cause, next_step=next_step, run=state.run, phase=phase.key)


def breakers(facts: Facts) -> Iterator[Finding]:
    """Services and capabilities that nobody is let through to."""
    for state in facts.breakers:
        if state.status == "open":
            again = f", tried again at {_clock(state.retry_at)}" if state.retry_at is not None else ""
            why = f": {state.reason}" if state.reason else ""
            cause = f"breaker open: {state.breaker!r}, opened by {state.by}{again}{why}"
            next_step = f"phasebus breaker close {state.breaker}"
            yield Finding(code="breaker_open", weight="waiting", cause=cause, next_step=next_step)


def limits(facts: Facts) -> Iterator[Finding]:
    """Budgets that are spent, and limits that all were asked to hold."""
    now = facts.at.timestamp()
    for name, standing in facts.limits.items():
        for meter in standing.quota.meters:
            account = standing.accounts.get(meter.name)
            least = 1.0 if meter.unit == "calls" else 0.0
            if meter.is_budget and account is not None and (account.left < least or account.told == account.window > 0):
                ends = datetime.fromtimestamp(account.window + meter.period_s, UTC)
                cause = (
                    f"budget spent: {meter.name}={meter.amount:g} of limit {name!r}; it begins anew at {_clock(ends)}"
                )
                next_step = f"wait, or raise {meter.name} where limit {name!r} is used"
                yield Finding(code="budget_spent", weight="waiting", cause=cause, next_step=next_step)
        if standing.held_until > now:
            until = _clock(datetime.fromtimestamp(standing.held_until, UTC))
            cause = f"limit held: nobody takes anything of {name!r} until {until}: the service has asked for it"
            yield Finding(code="limit_held", weight="waiting", cause=cause, next_step="phasebus limit ls")


def letters(facts: Facts) -> Iterator[Finding]:
    """Dead letters that nobody has seen to; that they grow is said."""
    if not facts.letters:
        return
    lately = [each for each in facts.letters if facts.at - each.at < _LATELY]
    (capability, said), count = Counter((each.capability, each.said) for each in facts.letters).most_common(1)[0]
    growing = (
        f"dead letters growing: {len(lately)} in the last 10 min, {len(facts.letters)}"
        if lately
        else (f"dead letters: {len(facts.letters)}")
    )
    newest = max(facts.letters, key=lambda each: each.number)
    cause = f"{growing} in all, {count} of {capability!r}: {said}"
    next_step = f"phasebus dead show {newest.number}"
    yield Finding(code="dead_letters", weight="failed", cause=cause, next_step=next_step)


def _code(facts: Facts, concern: Concern) -> str | None:
    match concern.kind:
        case "stuck":
            return "run_overdue" if concern.phase is None else None
        case "starved":
            return "unserved"
        case "waiting":
            state = next(each for each in facts.runs if each.run == concern.run)
            assert concern.phase is not None, "a gate waits"
            return "approval" if state.plan.graph[concern.phase].phase.signal is None else "signal"
        case _:
            return concern.kind


def _place(concern: Concern) -> str:
    if concern.phase is None:
        return f"run {concern.run}"
    item = "" if concern.item is None else f":{concern.item}"
    return f"phase {concern.phase}{item} of run {concern.run}"


def _age_s(facts: Facts, since: datetime) -> float:
    return (facts.at - since).total_seconds()


def _clock(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
