"""A walk along a run: on a terminal by keys, drawn again after each; piped, or from a script, by words."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence

from console.failure import USAGE, Failure
from console.keys import Keys, pressed
from console.printer import Printer
from console.stepper import ARGUMENTS, KEYS, STORY, Stepper, Unknown, key, split
from console.text import escaped

_LEAST_AROUND = 3
_ALTERNATE, _BACK, _HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H", "\x1b[K", "\x1b[J"
_BACKSPACE = ("\x7f", "\x08")

Tell = Callable[[], Awaitable[None]]
"""Reads the story of the run, for commands that look beyond it."""


async def follow_script(stepper: Stepper, words: str, printer: Printer, tell: Tell) -> None:
    """Carry out the commands one after the other, and print what each shows; without any, the event it begins with.

    Raises Failure for what is no command.
    """
    try:
        commands = split(words)
        if not commands:
            _print(printer, "", stepper.view().lines, stepper.view().record)
        for command, word in commands:
            if command == "q":
                return
            if command in STORY and not stepper.has_story:
                await tell()
            reply = stepper.obey(command, word)
            _print(printer, f"{command} {word}".rstrip(), reply.lines, reply.record)
    except Unknown as error:
        raise Failure(USAGE, str(error), "phasebus debug --help") from None


def _print(printer: Printer, command: str, lines: Sequence[str], record: dict[str, object]) -> None:
    if printer.as_json:
        printer.record({"command": command} | record)
        return
    for text in lines:
        printer.line(text)


async def walk(stepper: Stepper, tell: Tell) -> None:
    """Obey keys until `q`. The terminal is as it was afterwards."""
    sys.stdout.write(_ALTERNATE)
    try:
        async with pressed(sys.stdin) as keys:
            await _walk(stepper, tell, keys)
    except (EOFError, KeyboardInterrupt):
        # Ctrl-D and Ctrl-C are how one leaves, too.
        return
    finally:
        sys.stdout.write(_BACK)
        sys.stdout.flush()


async def _walk(stepper: Stepper, tell: Tell, keys: Keys) -> None:
    shown: Sequence[str] = ()
    while True:
        _draw(stepper, shown)
        command, word = key(await keys.next())
        if command == "q":
            return
        if command in ARGUMENTS and not word:
            asked = await _asked(ARGUMENTS[command], keys)
            if asked is None:
                continue
            word = asked
        shown = await _obeyed(stepper, command, word, tell)


async def _obeyed(stepper: Stepper, command: str, word: str, tell: Tell) -> Sequence[str]:
    """What is shown below the event: nothing after a step, since the event itself is."""
    if command in STORY and not stepper.has_story:
        sys.stdout.write("\rreading the story ...")
        sys.stdout.flush()
        await tell()
    before = stepper.place
    try:
        reply = stepper.obey(command, word)
    except Unknown as error:
        return [escaped(str(error))]
    return () if stepper.place != before else reply.lines


def _draw(stepper: Stepper, shown: Sequence[str]) -> None:
    columns, rows = shutil.get_terminal_size()
    view = stepper.view().lines
    room = rows - len(view) - 3
    around = stepper.neighbours(max(room - len(shown) if shown else room, _LEAST_AROUND))
    lines = [f"{'>' if is_here else ' '} {text}" for is_here, text in around]
    lines += ["-" * (columns - 1), *view]
    below = max(rows - 1 - len(lines), 0)
    lines += shown[:below]
    if len(shown) > below > 0:
        lines[-1] = f"... {len(shown) - below + 1} more lines: --script shows all"
    lines = lines[: rows - 1]
    text = "".join(f"{line[: columns - 1]}{_CLEAR_LINE}\r\n" for line in lines)
    sys.stdout.write(f"{_HOME}{text}{_CLEAR_REST}\x1b[{rows};1H{KEYS[: columns - 1]}")
    sys.stdout.flush()


async def _asked(question: str, keys: Keys) -> str | None:
    """A word that is typed at the bottom; None if Escape was pressed."""
    rows = shutil.get_terminal_size().lines
    typed = ""
    while True:
        sys.stdout.write(f"\x1b[{rows};1H{_CLEAR_LINE}{question}: {escaped(typed)}")
        sys.stdout.flush()
        typing = await keys.next()
        if typing.startswith("\x1b"):
            return None
        if typing in ("\r", "\n"):
            return typed
        typed = typed[:-1] if typing in _BACKSPACE else typed + typing
