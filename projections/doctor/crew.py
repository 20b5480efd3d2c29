"""Checks of who is there: the supervisor, and agents that are connected and do not answer."""

from __future__ import annotations

from collections.abc import Iterator

from bus.rules.route import need
from projections.attention import Mute
from projections.doctor.facts import Facts, Member
from projections.doctor.finding import Code, Finding

_RESTING: dict[str, Code] = {"quarantined": "quarantined", "draining": "draining"}


def supervisor(facts: Facts) -> Iterator[Finding]:
    """Whether anybody acts when nobody else does."""
    lead = facts.lead
    if lead is None or lead.leader:
        return
    idle = "lost work, deadlines and retries wait until one leads"
    if lead.process == "stopped":
        cause = f"supervisor frozen: process {lead.pid} (phasebus up) is stopped, and nobody else leads; {idle}"
        yield Finding(code="supervisor_frozen", weight="broken", cause=cause, next_step=f"kill -CONT {lead.pid}")
    elif lead.standing_by:
        many = "1 process is" if lead.standing_by == 1 else f"{lead.standing_by} processes are"
        cause = f"supervisor frozen: {many} connected as supervisor, and none leads; {idle}"
        next_step = "phasebus up (another one takes over), then end the frozen one: ps -eo pid,stat,command | grep ' T'"
        yield Finding(code="supervisor_frozen", weight="broken", cause=cause, next_step=next_step)
    else:
        cause = f"no supervisor leads: {idle}"
        yield Finding(code="no_supervisor", weight="broken", cause=cause, next_step="phasebus up")


def mutes(facts: Facts) -> Iterator[Finding]:
    """Agents that are connected and answer nobody. What they hold is told with the run."""
    holders = {holder.instance for state in facts.runs if state.is_open for _, _, holder in state.held()}
    for member in (facts.members or {}).values():
        if member.life == "mute" and member.instance not in holders:
            mute = muteness(member)
            yield Finding(code=mute.reason, weight="stuck", cause=mute.cause, next_step=mute.next_step)


def resting(facts: Facts) -> Iterator[Finding]:
    """Capabilities for which work waits, and which only instances have that take nothing."""
    if facts.members is None:
        return
    alive = [each for each in facts.members.values() if each.life == "alive"]
    for state in facts.runs:
        for phase in state.phases.values() if state.is_open and state.paused_at is None else ():
            capability = state.capability(phase.key)
            waiting = next((item for item in phase.items if item.status == "ready"), None)
            if capability is None or waiting is None:
                continue
            having = [each for each in alive if need(capability, waiting.arm) in each.capabilities]
            if not having or any(_takes(each, capability) for each in having):
                continue
            first = having[0]
            why = first.takes_nothing or "paused after a dead letter"
            code = _RESTING.get(first.takes_nothing.partition(":")[0], "capability_paused")
            others = f", and {len(having) - 1} more are not taking it" if len(having) > 1 else ""
            cause = (
                f"nobody takes {capability!r}: {first.instance} is {why}{others}; "
                f"phase {phase.key} of run {state.run} waits"
            )
            next_step = {
                "quarantined": f"phasebus agent release {first.agent}",
                "draining": "phasebus agent run FILE.py:agent",
            }.get(code, f"phasebus dead release {capability}")
            yield Finding(code=code, weight="stuck", cause=cause, next_step=next_step, run=state.run, phase=phase.key)


def takes(facts: Facts, capability: str) -> bool:
    """Whether anybody who is alive takes work for it."""
    return any(each.life == "alive" and _takes(each, capability) for each in (facts.members or {}).values())


def _takes(member: Member, capability: str) -> bool:
    return capability in member.capabilities and not member.takes_nothing and capability not in member.paused


def muteness(member: Member) -> Mute:
    """Why an instance that is connected does not answer."""
    who = f"instance {member.instance}"
    where = f"process {member.pid} on {member.host}" if member.pid else "its process"
    if member.process == "stopped":
        return Mute("frozen", f"instance frozen: {where} ({who}) is stopped", f"kill -CONT {member.pid}")
    if member.process == "running":
        cause = (
            f"event loop blocked: {where} ({who}) runs, and does not answer: "
            "a handler blocks it (a plain `def` runs in a thread)"
        )
        return Mute("loop_blocked", cause, f"py-spy dump --pid {member.pid}, or kill {member.pid}")
    cause = f"instance mute: {who} is connected, and does not answer: {where} is frozen, or its event loop is blocked"
    next_step = f"on {member.host}: ps -o stat= -p {member.pid}" if member.pid else "phasebus agent ls"
    return Mute("mute", cause, next_step)
