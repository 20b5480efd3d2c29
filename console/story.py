"""What an event says, in a few words on one line."""

from __future__ import annotations

from contextlib import suppress

from bus.errors import MalformedMessage
from bus.history.happening import Happening
from bus.rules import dead
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.events import (
    EVENTS,
    Event,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEffectNotDone,
    PhaseEscalated,
    PhaseExpanded,
    PhaseFailed,
    PhaseInputReplaced,
    PhaseProgressed,
    PhaseReady,
    PhaseSaved,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndoing,
    PhaseWaiting,
    ResultRefused,
    RunArchived,
    RunCancelled,
    RunCheckpointed,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunRedriven,
    RunResumed,
    RunRollingBack,
    RunSignalled,
    RunStarted,
    UnknownEvent,
    type_of,
)
from console.printer import to_json
from console.text import shortened
from console.timeline import way

_CHARACTERS = 100
_TYPE_CHARACTERS = 40


def said(event: Event) -> str:
    """What the event says. Payloads are shortened and escaped."""
    return shortened(_said(event), _CHARACTERS)


def named(event: Event) -> str:
    """The event's type, without its version if this one knows it."""
    if isinstance(event, UnknownEvent):
        return shortened(event.type, _TYPE_CHARACTERS)
    return type_of(event).rpartition(".v")[0]


def told(happening: Happening) -> str:
    """The same of whatever is in the log; of what is no event of a run, what it carries."""
    if happening.event is not None:
        return said(happening.event)
    if happening.problem or happening.message is None:
        return shortened(happening.problem, _CHARACTERS)
    if happening.type in (dead.LETTER, dead.UNREADABLE):
        with suppress(MalformedMessage):
            return shortened(_said_letter(dead.read(happening.message)), _CHARACTERS)
    return shortened(to_json(happening.message.data), _CHARACTERS)


def _said_letter(letter: DeadLetter | Unreadable) -> str:
    if isinstance(letter, Unreadable):
        return f"{letter.subject}: {letter.reason}"
    item = "" if letter.item is None else f":{letter.item}"
    return f"{letter.run}/{letter.phase}{item} #{letter.attempt}: {letter.problem}"


def _said(event: Event) -> str:
    match event:
        case RunStarted():
            return f"plan {event.plan.name} {event.plan.version}, input {to_json(event.input)}"
        case RunCompleted():
            return f"without {', '.join(event.failures)}" if event.failures else ""
        case RunFailed():
            return str(event.problem)
        case RunCancelled():
            return f"by {event.by}{_because(event.reason)}"
        case RunRedriven():
            item = "" if event.item is None else f":{event.item}"
            return f"by {event.by}: {event.phases[0]}{item}{''.join(f', {key}' for key in event.phases[1:])}"
        case RunPaused():
            return f"by {event.by}{_because(event.reason)}"
        case RunResumed():
            return f"by {event.by}"
        case RunSignalled():
            return f"{event.signal} by {event.by}: {to_json(event.data)}"
        case RunCheckpointed():
            return f"{event.name} by {event.by}"
        case RunRollingBack():
            if event.problem is not None:
                return f"by {event.by}: {', '.join(event.undo)}, because {event.problem}"
            if event.cancels:
                return f"by {event.by}: {', '.join(event.undo)}, to cancel the run{_because(event.reason)}"
            return f"by {event.by} to before {', '.join(event.phases)}{_because(event.reason)}"
        case PhaseUndoing():
            return event.phase
        case RunArchived():
            return f"by {event.by}: up to position {event.upto}, in archive {event.archive}"
        case PhaseExpanded():
            return f"{event.phase}: {event.items} items"
        case PhaseInputReplaced():
            how = f" with {event.transform}" if event.transform else ""
            return f"{_place(event)} by {event.by}{how}{_because(event.reason)}: {to_json(event.input)}"
        case PhaseReady():
            due = f", due {event.due_at:%H:%M:%S}" if event.due_at is not None else ""
            return f"{_attempt(event)}{due}" + (f", {way(event.arm)}" if event.arm is not None else "")
        case PhaseStarted():
            because = f", because {event.because}" if event.because else ""
            return f"{_attempt(event)} on {event.instance}{because}"
        case PhaseProgressed():
            return f"{_attempt(event)}: {event.fraction:.0%}{_because(event.note)}"
        case PhaseCompleted(cached=source) if source is not None:
            return f"{_attempt(event)}, cached from {source.run}: {to_json(event.output)}"
        case PhaseCompleted():
            if event.attempt is not None:
                return f"{_attempt(event)}: {to_json(event.output)}"
            return f"{event.phase}: {to_json(event.output)}" if event.output else f"{event.phase}: all items"
        case PhaseEffectIntended():
            return f"{_attempt(event)}: {event.effect}"
        case PhaseEffectDone():
            vouched = f", says {event.by}" if event.by else ""
            return f"{_attempt(event)}: {event.effect} gave {to_json(event.outcome)}{vouched}{_because(event.reason)}"
        case PhaseEffectNotDone():
            vouched = f", says {event.by}" if event.by else ""
            return f"{_attempt(event)}: {event.effect} was not done{vouched}{_because(event.reason)}"
        case PhaseSaved():
            return f"{_attempt(event)}: {to_json(event.state)}"
        case PhaseAttemptFailed():
            return f"{_attempt(event)} {event.cause}: {event.problem}"
        case PhaseFailed():
            return f"{_place(event)}: {event.problem}"
        case PhaseWaiting():
            return f"{event.phase}, until {event.expires_at:%Y-%m-%d %H:%M:%S}{_because(event.prompt)}"
        case PhaseEscalated():
            return f"{event.phase} to {', '.join(event.to)}, until {event.expires_at:%Y-%m-%d %H:%M:%S}"
        case PhaseApproved():
            return f"{event.phase} by {event.by}{_because(event.comment)}"
        case PhaseSkipped():
            return f"{event.phase}{_because(event.reason)}"
        case PhaseCancelled():
            return f"{_place(event)}{_because(event.reason)}"
        case ResultRefused():
            return f"{_attempt(event)} of {event.instance} {event.outcome}: {event.reason}"
        case UnknownEvent():
            newer = EVENTS.standing(event.type) == "newer"
            what = "of a newer version" if newer else "of a type this version does not know"
            return f"{what}, without effect here: {to_json(event.raw)}"


def _place(
    event: PhaseReady
    | PhaseInputReplaced
    | PhaseStarted
    | PhaseProgressed
    | PhaseCompleted
    | PhaseEffectIntended
    | PhaseEffectDone
    | PhaseEffectNotDone
    | PhaseSaved
    | PhaseAttemptFailed
    | PhaseFailed
    | PhaseCancelled
    | ResultRefused,
) -> str:
    return event.phase if event.item is None else f"{event.phase}:{event.item}"


def _attempt(
    event: PhaseReady
    | PhaseStarted
    | PhaseProgressed
    | PhaseCompleted
    | PhaseEffectIntended
    | PhaseEffectDone
    | PhaseEffectNotDone
    | PhaseSaved
    | PhaseAttemptFailed
    | ResultRefused,
) -> str:
    return f"{_place(event)} #{event.attempt}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
