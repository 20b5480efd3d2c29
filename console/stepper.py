"""The stepper: where somebody stands on a run's trail, the commands that move them, and what each shows.

It reads nothing and draws nothing: what it says are lines for people, or records for programs. Who wants to look beyond
the run gives it the story first.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from bus.history.change import Change, changes
from bus.history.happening import Happening
from bus.history.lineage import Lineage, Spot
from bus.history.trail import Trail, is_about
from bus.rules.run import RunState
from console import loglines, strands
from console.loglines import LogLine
from console.printer import pretty_json, to_json
from console.story import named, told
from console.text import duration, escaped, shortened
from console.timeline import timeline

ARGUMENTS = {
    "g": "go to (position, time, start or end)",
    "/": "search",
    "?": "search back",
    "b": "run until",
    "S": "state",
}
"""The commands that take a word more, and what to ask for."""
STORY = frozenset("cem")
"""The commands that look beyond the run: to messages and other runs."""
HELP = (
    "n next   p back   g go to   / ? search   b run until   c causes   e effects   m messages   "
    "s run   S phase   d changes   l logs   q quit"
)
KEYS = "n p step, g go, / ? find, b until, c e causes, m near, s S state, d diff, l, q"
"""All of them, for a line of 80 characters."""
_KEYS = {"\x1b[C": "n", "\x1b[B": "n", "\x1b[D": "p", "\x1b[A": "p", "\x1b[H": "g start", "\x1b[F": "g end"}
_KEYS |= {"\x1bOC": "n", "\x1bOB": "n", "\x1bOD": "p", "\x1bOA": "p", "\r": "n", "\n": "n", " ": "n"}
_VALUE_CHARACTERS = 80
_CHANGES = 40
_MESSAGES = 6


class Reply(msgspec.Struct, frozen=True):
    """What a command shows: to people, and to programs."""

    lines: Sequence[str]
    record: dict[str, Any]


class Unknown(ValueError):
    """There is no such command, or its word says nothing. Says what there is."""


def split(words: str) -> list[tuple[str, str]]:
    """A script as commands with their words: `n n g 41 s`. Raises Unknown."""
    found: list[tuple[str, str]] = []
    given = iter(words.split())
    for word in given:
        if word in ARGUMENTS:
            argument = next(given, None)
            if argument is None:
                raise Unknown(f"{word} needs a word more: {ARGUMENTS[word]}")
            found.append((word, argument))
        elif len(word) == 1 and word in "npcemsdlq":
            found.append((word, ""))
        else:
            raise Unknown(f"there is no command {word!r}: {HELP}")
    return found


def key(pressed: str) -> tuple[str, str]:
    """The command behind a key, with its word if the key says it all."""
    command, _, word = _KEYS.get(pressed, pressed).partition(" ")
    return command, word


class Stepper:
    """Stands at the first event, or at `place`. `story` is the run's own events unless `tell` gives more."""

    def __init__(self, trail: Trail, logs: Sequence[LogLine] | None = None, place: int = 0) -> None:
        self.trail = trail
        self.place = place
        self.has_story = False
        self._logs = logs
        self._lineage = Lineage(trail.happenings)
        self._story = trail.happenings
        self._sought = ""

    def tell(self, story: Sequence[Happening]) -> None:
        """From here on causes, effects and messages are those of the whole story."""
        self._lineage, self._story, self.has_story = Lineage(story), story, True

    @property
    def here(self) -> Happening:
        return self.trail.happenings[self.place]

    @property
    def spot(self) -> Spot:
        return self.here.position, self.here.index

    def obey(self, command: str, word: str = "") -> Reply:
        """Carry out one command. Raises Unknown, and then nothing has changed."""
        match command:
            case "n":
                return self._move(self.place + 1, "this is the last event")
            case "p":
                return self._move(self.place - 1, "this is the first event")
            case "g":
                return self._move(self._goal(word))
            case "/" | "?":
                return self._search(word, backwards=command == "?")
            case "b":
                return self._run_until(word)
            case "c":
                return self._causes()
            case "e":
                return self._effects()
            case "m":
                return self._messages()
            case "s":
                return self._state()
            case "S":
                return self._phase(word)
            case "d":
                return self._difference()
            case "l":
                return self._logged()
        raise Unknown(f"there is no command {command!r}: {HELP}")

    def view(self) -> Reply:
        """The event here: what it says, of what it came, what came of it, and what it changed."""
        each, lineage = self.here, self._lineage
        lines = [self._head(), f"  {self._what(each)}  {told(each)}".rstrip()]
        if each.problem:
            lines.append(f"  set aside: {escaped(each.problem)}")
        elif (aside := self.trail.asides.get(each.position)) is not None:
            lines.append(f"  set aside, it does not follow from what was before: {escaped(aside)}")
        cause = lineage.cause(self.spot)
        if cause is not None:
            lines.append(f"  because   {strands.brief(lineage, cause, self.trail.run)}")
        effects = lineage.effects(self.spot)
        for effect in effects[:3]:
            lines.append(f"  led to    {strands.brief(lineage, effect, self.trail.run)}")
        if len(effects) > 3:
            lines.append(f"            and {len(effects) - 3} more: e")
        found = [each for each in self._changes() if each.path.endswith("status")]
        if found:
            lines.append(f"  changed   {'; '.join(map(_status, found[:4]))}{' ...' if len(found) > 4 else ''}")
        return Reply(lines, self._record() | strands.node(lineage, self.spot))

    def neighbours(self, count: int) -> list[tuple[bool, str]]:
        """So many events around the one here, as lines; True for this one."""
        first = max(min(self.place - count // 2, len(self.trail) - count), 0)
        some = self.trail.happenings[first : first + count]
        return [(place == self.place, self._row(each)) for place, each in enumerate(some, first)]

    # Moving

    def _move(self, place: int, otherwise: str = "") -> Reply:
        if not 0 <= place < len(self.trail):
            return Reply([otherwise], {"said": otherwise} | self._record())
        self.place = place
        return self.view()

    def _goal(self, word: str) -> int:
        if word in ("start", "end"):
            return 0 if word == "start" else len(self.trail) - 1
        position, _, index = word.partition(".")
        if position.isdigit() and (not index or index.isdigit()):
            return self.trail.at(int(position), int(index) if index else None)
        try:
            instant = datetime.fromisoformat(word)
        except ValueError:
            raise Unknown(f"{word!r} is no place: write 41, 41.2, 2026-01-31T12:00, start or end") from None
        return self.trail.at_time(instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC))

    def _search(self, word: str, *, backwards: bool) -> Reply:
        self._sought = word or self._sought
        if not self._sought:
            raise Unknown("search for a type or a phase: phase.failed, write, write:3")
        place = self.trail.find(self._sought, self.place, backwards=backwards)
        if place is None:
            return self._said(f"no {escaped(self._sought)} {'before' if backwards else 'behind'} this")
        return self._move(place)

    def _run_until(self, word: str) -> Reply:
        """On to the next event of a type or phase, or at which a phase becomes so: `write=failed`."""
        phase, is_status, status = word.partition("=")
        for place in range(self.place + 1, len(self.trail)):
            if is_status:
                # Only an event about it, or about the run, can have changed it.
                if self.trail.happenings[place].phase in (phase, None) and _has(self.trail.after(place), phase, status):
                    return self._move(place)
            elif is_about(self.trail.happenings[place], word):
                return self._move(place)
        self.place = len(self.trail) - 1
        return Reply([f"it ended without {escaped(word)}", *self.view().lines], {"found": False} | self._record())

    # Looking

    def _causes(self) -> Reply:
        chain = strands.backwards(self._lineage, self.spot)
        nodes = [strands.node(self._lineage, spot) for spot in reversed(self._lineage.causes(self.spot))]
        return Reply(chain or ["somebody's decision: nothing in the log led to it"], {"causes": nodes})

    def _effects(self) -> Reply:
        nodes = [strands.node(self._lineage, spot) for spot in self._lineage.effects(self.spot)]
        return Reply(strands.forwards(self._lineage, self.spot) or ["nothing has come of it"], {"effects": nodes})

    def _messages(self) -> Reply:
        """What else of the story stands in the log around here: messages, dead letters, events of other runs."""
        others = [each for each in self._story if not (each.kind == "run" and each.run == self.trail.run)]
        before = [each for each in others if each.position <= self.here.position][-_MESSAGES:]
        behind = [each for each in others if each.position > self.here.position][:_MESSAGES]
        lines = [strands.line(self._lineage, (each.position, each.index)) for each in before]
        lines += [f"-- {strands.brief(self._lineage, self.spot, self.trail.run)}"] if before or behind else []
        lines += [strands.line(self._lineage, (each.position, each.index)) for each in behind]
        nodes = [strands.node(self._lineage, (each.position, each.index)) for each in (*before, *behind)]
        return Reply(lines or ["no messages belong to this run"], {"messages": nodes})

    def _state(self) -> Reply:
        state = self._after()
        if state is None:
            return self._said("there is no run yet")
        return Reply(timeline(state, self.here.at).split("\n"), {"state": msgspec.Raw(to_json(state).encode())})

    def _phase(self, word: str) -> Reply:
        state, wanted = self._after(), word or self.here.phase or ""
        key, _, index = wanted.partition(":")
        phase = state.phases.get(key) if state is not None else None
        found: Any = phase
        if phase is not None and index:
            found = phase.item(int(index)) if index.isdigit() else None
        if found is None:
            known = ", ".join(state.phases) if state is not None else "none"
            raise Unknown(f"there is no phase {wanted!r} here; there are: {known}")
        return Reply(pretty_json(found), {"phase": wanted, "state": msgspec.Raw(to_json(found).encode())})

    def _difference(self) -> Reply:
        found = self._changes()
        lines = [_changed(each) for each in found[:_CHANGES]]
        lines += [f"and {len(found) - _CHANGES} more"] if len(found) > _CHANGES else []
        return Reply(lines or ["it changed nothing"], {"changes": found})

    def _logged(self) -> Reply:
        if self._logs is None:
            return self._said("no log was given: phasebus debug RUN --logs FILE")
        place = self.here.phase or ""
        place = place if self.here.item is None else f"{place}:{self.here.item}"
        found = loglines.around(self._logs, self.here.at, place)
        lines = [_log_line(each, self.here.at) for each in found]
        return Reply(lines or ["nothing was logged about this"], {"logs": found})

    def _changes(self) -> list[Change]:
        return changes(self.trail.before(self.place), self._after())

    def _after(self) -> RunState | None:
        return self.trail.after(self.place)

    # Saying

    def _said(self, text: str) -> Reply:
        return Reply([text], {"said": text})

    def _head(self) -> str:
        each = self.here
        start = self.trail.happenings[0].at
        ran = duration((each.at - start).total_seconds())
        by = f"  by {escaped(each.message.source)}" if each.message is not None else ""
        return f"event {self.place + 1} of {len(self.trail)}  at {_spot(each)}  {_clock(each.at)}  after {ran}{by}"

    def _what(self, each: Happening) -> str:
        return named(each.event) if each.event is not None else escaped(each.type)

    def _row(self, each: Happening) -> str:
        return f"{_spot(each):>8}  {_clock(each.at)}  {self._what(each):<20}  {told(each)}".rstrip()

    def _record(self) -> dict[str, Any]:
        state = self._after()
        return {
            "place": self.place,
            "of": len(self.trail),
            "at": self.here.at,
            "said": told(self.here),
            "status": state.status if state is not None else None,
        }


def _has(state: RunState | None, phase: str, status: str) -> bool:
    found = state.phases.get(phase) if state is not None else None
    return found is not None and found.status == status


def _spot(each: Happening) -> str:
    return f"{each.position}.{each.index}"


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}.{at.microsecond // 1000:03}"


def _status(each: Change) -> str:
    path = each.path.removeprefix("phases.").removesuffix(".status").removesuffix(".work").replace(".items.", ":")
    name = "the run" if path == "status" else path
    return f"{escaped(name)}: {_value(each.before)} to {_value(each.after)}"


def _changed(each: Change) -> str:
    return f"{escaped(each.path)}: {_value(each.before)} -> {_value(each.after)}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return shortened(value, _VALUE_CHARACTERS)
    return "nothing" if value is msgspec.UNSET else shortened(to_json(value), _VALUE_CHARACTERS)


def _log_line(each: LogLine, now: datetime) -> str:
    mark = " " if each.at <= now else "+"
    attempt = f" #{each.attempt}" if each.attempt is not None else ""
    rest = f"  {to_json(each.rest)}" if each.rest else ""
    said = f"{mark} {_clock(each.at)} {each.level:<7} {each.event}  {each.phase}{attempt}{rest}"
    return shortened(said, 200)
