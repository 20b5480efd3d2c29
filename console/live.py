"""A run as it goes on: on a terminal a tree of its phases, drawn again in place; piped, one line per change."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from itertools import chain, compress, repeat
from operator import is_not
from typing import Protocol, TextIO

from bus.client import Client
from bus.clock import utc_now
from bus.rules.run import SUCCEEDED, Item, PhaseState, RunState
from console.foresight import Foresight, foresee
from console.lookout import lookout
from console.text import duration, escaped
from console.timeline import Glyphs, done, glyphs, label, outcome, took
from projections.attention import opening
from projections.progress import Progress, progress
from projections.projection import View, fold
from projections.runs import RUNS

_REDRAW_S = 0.2
_HISTORY_S = 2.0
_STEPS = 20
_CLEAR = "\x1b[J"
_COLOURS = {"completed": 32, "approved": 32, "failed": 31, "waiting": 33, "in_progress": 36}


async def follow(client: Client, run: str) -> RunState:
    """Show a run from its beginning until it has ended; returns how it ended.

    A lost line is waited for. Raises NotFound, Unavailable.
    """
    foresight = await foresee(client, run)
    async with (
        shown(sys.stdout, foresight) as screen,
        lookout(client, run, lambda text: screen.remark(text, utc_now())),
        aclosing(states(client, run)) as seen,
    ):
        async for state, at in seen:
            screen.show(state, at)
    return state


async def states(client: Client, run: str) -> AsyncGenerator[tuple[RunState, datetime], None]:
    """The run after each of its commits, the first included, with the commit's time; ends with it. Raises NotFound."""
    view: View[RunState] = View()
    async with aclosing(client.watch(run)) as happenings:
        async for happening in happenings:
            before, view = view, fold(RUNS, view, [happening])
            if view.rows.get(run) is not before.rows.get(run):
                yield view.rows[run], happening.at


class Screen(Protocol):
    """Where a run is shown."""

    def show(self, state: RunState, at: datetime) -> None:
        """This is the run from `at` on."""

    def remark(self, text: str, at: datetime) -> None:
        """A line about the run, that stays."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def ask(self, question: str) -> None:
        """A line that waits for what is typed behind it; nothing is drawn before the next `say`."""


@asynccontextmanager
async def shown(
    stream: TextIO, foresight: Foresight, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[Screen]:
    """A screen that suits the stream, while the block runs."""
    if not stream.isatty() or environment.get("TERM") == "dumb":
        yield Lines(stream, foresight)
        return
    tree = Tree(stream, foresight, has_colour="NO_COLOR" not in environment)
    ticking = asyncio.create_task(_tick(tree))
    try:
        yield tree
    finally:
        ticking.cancel()
        tree.draw()


async def _tick(tree: Tree) -> None:
    while True:
        await asyncio.sleep(_REDRAW_S)
        tree.draw()


class Lines:
    """For a pipe or a file: what has changed, a line each."""

    def __init__(self, stream: TextIO, foresight: Foresight) -> None:
        self._stream = stream
        self._foresight = foresight
        self._state: RunState | None = None
        self._at: datetime | None = None

    def show(self, state: RunState, at: datetime) -> None:
        before, self._state = self._state, state
        found = list(changes(before, state))
        if found:
            far = self._progress(state, at)
            found[-1] += _behind(self._foresight.left(state, far.eta))
            self.say("\n".join(_head(far) + text for text in found))

    def remark(self, text: str, at: datetime) -> None:
        if self._state is not None:
            self.say(_head(self._progress(self._state, at)) + text)

    def _progress(self, state: RunState, at: datetime) -> Progress:
        # Times come from the clocks of many machines; what is told goes forward.
        self._at = max(at, self._at or at)
        return progress(state, self._foresight.history, self._at)

    def say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def ask(self, question: str) -> None:
        self._stream.write(f"{question} ")
        self._stream.flush()


class Tree:
    """For a terminal: every phase on a line of its own, drawn again in place."""

    def __init__(self, stream: TextIO, foresight: Foresight, *, has_colour: bool) -> None:
        self._stream = stream
        self._foresight = foresight
        self._drawn = glyphs(stream.encoding)
        self._has_colour = has_colour
        self._state: RunState | None = None
        self._lines = 0
        self._is_still = False

    def show(self, state: RunState, at: datetime) -> None:
        # Drawn at the next tick: a hundred commits a second are one picture.
        self._state = state
        if not state.is_open:
            self.draw()

    def remark(self, text: str, at: datetime) -> None:
        self.say(text)

    def say(self, text: str) -> None:
        self._write(f"{self._home()}{text}\n")
        self._lines = 0
        self._is_still = False
        self.draw()

    def ask(self, question: str) -> None:
        self.draw()
        self._write(f"{question} ")
        self._lines = 0
        self._is_still = True

    def draw(self) -> None:
        """As it is now."""
        if self._state is None or self._is_still:
            return
        now = utc_now()
        columns, rows = shutil.get_terminal_size()
        far = progress(self._state, self._foresight.history, now)
        lines = tree(self._state, far, now, self._drawn, self._foresight.left(self._state, far.eta))
        # What scrolls off the top can't be drawn again.
        lines = [line[: columns - 1] for line in lines[: max(rows - 1, 1)]]
        text = "\n".join(self._coloured(line) for line in lines)
        self._write(f"{self._home()}{text}\n")
        self._lines = len(lines)

    def _home(self) -> str:
        """To where the tree begins, with everything from there on gone."""
        return (f"\x1b[{self._lines}F" if self._lines else "\r") + _CLEAR

    def _coloured(self, line: str) -> str:
        if not self._has_colour:
            return line
        for status, colour in _COLOURS.items():
            mark = f" {self._drawn.marks[status]} "
            if line.startswith(mark):
                return f"\x1b[{colour}m{mark}\x1b[0m{line[len(mark) :]}"
        return line

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def tree(state: RunState, far: Progress, now: datetime, drawn: Glyphs, left: str = "") -> list[str]:
    """The run as lines: how far it is and what is left of it, then a phase each."""
    lines = [f"{state.run}  {far.fraction:.0%}  {duration(far.elapsed_s)}{_behind(left)}"]
    width = max(map(len, state.phases))
    for phase in state.phases.values():
        line = f" {drawn.marks[phase.status]} {phase.key:<{width}}  {done(phase):>7}  {took(phase, now):>9}"
        lines.append(f"{line}  {_remark(state, phase)}".rstrip())
    return lines


def changes(before: RunState | None, after: RunState) -> Iterator[str]:
    """What a reader who knows `before` has to be told: phases, attempts that broke off, and of many items the count."""
    if before is None:
        yield f"{after.run} started: {', '.join(after.phases)}"
    elif after.passes > before.passes:
        yield f"{after.run} redriven, pass {after.passes}"
    for key, phase in after.phases.items():
        earlier = before.phases[key] if before is not None else PhaseState(key=key)
        if earlier is not phase:
            yield from _phase_changes(after, earlier, phase)
    if not after.is_open and (before is None or before.is_open):
        reason = f": {escaped(str(after.problem))}" if after.problem else ""
        yield f"{after.run} {after.status}{reason}"


def _phase_changes(state: RunState, before: PhaseState, after: PhaseState) -> Iterator[str]:
    changed = list(compress(after.items, map(is_not, after.items, chain(before.items, repeat(None)))))
    yield from _attempts(before, after.key, changed)
    # Of many items not each one is worth a line.
    newly = sum(1 for item in changed if item.index is not None and item.status in SUCCEEDED)
    if after.status == "in_progress" and newly:
        succeeded, total = map(int, done(after).split("/"))
        if succeeded * _STEPS // total != (succeeded - newly) * _STEPS // total:
            yield f"{after.key} {done(after)}"
    if after.status == before.status:
        return
    if after.status == "in_progress":
        if before.status in ("pending", "ready") and not any(len(item.attempts) > 1 for item in after.items):
            yield f"{after.key} started" + (f", {len(after.items)} items" if done(after) else f" by {_taker(after)}")
    elif after.status == "waiting":
        what = "an answer" if state.plan.graph[after.key].phase.signal is None else "a signal"
        what = "a run" if after.child else what
        yield f"{after.key} waits for {what} {_answer(state, after)}"
    elif after.ended_at is not None:
        lasted = took(after, after.ended_at)
        by = f" by {escaped(after.answered_by)}" if after.answered_by else ""
        why = escaped(str(after.problem or after.reason or ""))
        yield f"{after.key} {after.status}{by}" + (f", {lasted}" if lasted else "") + (f": {why}" if why else "")


def _attempts(before: PhaseState, key: str, changed: Sequence[Item]) -> Iterator[str]:
    """Attempts that broke off, and those that took their place."""
    for item in changed:
        known = before.item(item.index)
        ended = sum(1 for attempt in known.attempts if attempt.ended_at) if known else 0
        begun = len(known.attempts) if known else 0
        name = label(key, item.index)
        for number, attempt in enumerate(item.attempts):
            if number >= begun and attempt.number > 1:
                yield f"{name} attempt {attempt.number} started by {attempt.instance}"
            # The end of a plain phase is told with its reason.
            is_told = item.index is None and item.status == "failed" and attempt is item.attempts[-1]
            if number >= ended and attempt.problem is not None and not is_told:
                why = escaped(str(attempt.problem))
                yield f"{name} attempt {attempt.number} of {attempt.instance} {outcome(attempt)}: {why}"


def _remark(state: RunState, phase: PhaseState) -> str:
    if phase.status == "waiting":
        return _answer(state, phase)
    if phase.status == "in_progress":
        held = [item.holder for item in phase.items if item.holder is not None]
        again = max((attempt.number for attempt in held), default=1)
        said = f"{len(held)} under way" if done(phase) else escaped(held[0].note if held else "")
        return ", ".join(part for part in (said, f"attempt {again}" if again > 1 else "") if part)
    return escaped(str(phase.problem or phase.reason or ""))


def _answer(state: RunState, phase: PhaseState) -> str:
    until = f"until {phase.expires_at:%Y-%m-%d %H:%M} UTC: " if phase.expires_at is not None else ""
    return f"{until}{opening(state, phase)}"


def _taker(phase: PhaseState) -> str:
    return phase.items[0].attempts[-1].instance


def _head(far: Progress) -> str:
    return f"{duration(far.elapsed_s):>8} {far.fraction:>5.0%}  "


def _behind(text: str) -> str:
    return f", {text}" if text else ""
