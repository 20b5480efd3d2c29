"""Cells: the processes of isolated handlers, as their worker sees them. One for each attempt, killed when it is over.

One process per instance imports the agent and is copied for each attempt; where it can't be (see
`bus.handlers.inside`), one is kept ready. Above each stands a keeper (`bus.handlers.keeper`): closing the socket to it
kills the attempt with all it started.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress

import msgspec
import structlog

from bus.errors import BusError, SettingsError
from bus.handlers import keeper
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Context
from bus.handlers.dictation import answer_to
from bus.handlers.frames import (
    Alive,
    Answered,
    Begin,
    Broken,
    Emitted,
    Failed,
    Frame,
    Noted,
    Pipe,
    Ready,
    Reported,
    Setup,
)
from bus.handlers.whereabouts import whereabouts
from bus.problem import ErrorClass, Problem
from bus.runs.causality import Facts

logger = structlog.get_logger(__name__)

_IMPORT_S = 60.0
_LAST_WORDS_S = 0.5
_TRACE_CHARACTERS = 4_000
# What the machine ends a process with, for its own reasons: it may well go through the next time.
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU}


class Cells:
    """Those of one instance of an agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._isolated = [each for each in agent.capabilities.values() if each.isolation is not None]
        self._setup: Setup | None = None
        self._forks = False
        self._first: Cell | None = None
        self._choosing = asyncio.Lock()

    async def open(self) -> None:
        """Import the agent where isolated handlers will run, if there are any. Raises SettingsError if it can't be."""
        if not self._isolated:
            return
        self._setup = whereabouts(self._agent, self._isolated)
        if sys.platform != "linux" and any(each.memory_mb for each in self._isolated):
            logger.warning("memory_mb is not enforced on this system", agent=self._agent.name)
        try:
            self._first = await Cell.launch(self._setup)
            async with asyncio.timeout(_IMPORT_S):
                ready = await self._first.ready()
        except TimeoutError:
            ready = Broken(f"importing it took longer than {_IMPORT_S:g} s", "")
        except OSError as error:
            ready = Broken(f"no process could be started: {error}", "")
        if isinstance(ready, Broken):
            self.close()
            where = f"{self._setup.modules[-1][0]}:{self._setup.name}"
            logger.error("not imported", agent=where, trace=ready.trace)
            raise SettingsError(
                f"isolation='process' imports {where} in another process, and that failed: {ready.reason}"
            )
        self._forks = ready.forks
        logger.info("cells ready", forks=ready.forks)

    def close(self) -> None:
        """End the process that waits for attempts; those of attempts end with them."""
        if self._first is not None:
            self._first.close()
            self._first = None

    async def answer(self, capability: Capability, value: object, context: Context) -> bytes | Problem:
        """The answer of an isolated handler. When this ends, however it does, so has its process."""
        try:
            cell = await self._cell()
        except OSError as error:
            return Problem("crashed", "no process could be started for the handler", "transient", detail=str(error))
        try:
            ready = await cell.ready()
            if isinstance(ready, Broken):
                return Problem(
                    "crashed",
                    "the handler's process could not import its agent",
                    "configuration",
                    detail=ready.reason,
                    trace=ready.trace[-_TRACE_CHARACTERS:],
                )
            return await cell.attend(capability, value, context)
        finally:
            cell.close()

    async def _cell(self) -> Cell:
        assert self._setup is not None, "a worker opens its cells before it serves"
        async with self._choosing:
            first = self._first
            if first is None or first.has_ended:
                if first is not None:
                    first.close()
                first = self._first = await Cell.launch(self._setup)
            if self._forks:
                ready = await first.ready()
                if isinstance(ready, Ready) and ready.forks:
                    return await first.copy()
            self._first = None
            with suppress(OSError):
                # The next one does its imports while this one works.
                self._first = await Cell.launch(self._setup)
            return first


class Cell:
    """One process with its keeper."""

    def __init__(
        self, data: Pipe, line: Pipe, ready: Ready | None = None, control: socket.socket | None = None
    ) -> None:
        self._data = data
        self._line = line
        self._control = control
        self._writing: set[asyncio.Task[None]] = set()
        self._ready = asyncio.create_task(self._become_ready(ready))
        self._end = asyncio.create_task(self._listen_for_end())

    @classmethod
    async def launch(cls, setup: Setup) -> Cell:
        """A process that imports the agent. Raises OSError."""
        with ExitStack() as theirs, ExitStack() as ours:
            (data, line), (their_data, their_line) = _sockets(ours, theirs)
            process = subprocess.Popen(  # noqa: ASYNC220 - it waits for the start of a program only, about 1 ms
                [sys.executable, "-P", str(keeper.__file__), str(their_data.fileno()), str(their_line.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[their_data.fileno(), their_line.fileno()],
                # Ctrl-C in a terminal is for the worker.
                process_group=0,
                env={**os.environ, keeper.PATH: json.dumps(sys.path)},
            )
            ours.pop_all()
        # Only reaped: it ends when its line does.
        threading.Thread(target=process.wait, daemon=True).start()
        control = data.dup()
        cell = cls(await Pipe.open(data), await Pipe.open(line), control=control)
        cell._data.send(setup)
        return cell

    async def copy(self) -> Cell:
        """A copy of this process, in a group of its own. Raises OSError."""
        assert self._control is not None, "a launched process can be copied"
        with ExitStack() as theirs, ExitStack() as ours:
            (data, line), (their_data, their_line) = _sockets(ours, theirs)
            socket.send_fds(self._control, [b"+"], [their_data.fileno(), their_line.fileno()])
            ours.pop_all()
        return Cell(await Pipe.open(data), await Pipe.open(line), Ready(forks=True))

    @property
    def has_ended(self) -> bool:
        return self._end.done()

    async def ready(self) -> Ready | Broken:
        """Whether the agent could be imported there, as soon as that is known."""
        return await asyncio.shield(self._ready)

    async def attend(self, capability: Capability, value: object, context: Context) -> bytes | Problem:
        """Have one attempt made there, and hear what is said of it."""
        facts = Facts(**{name: getattr(context, name) for name in Facts.__struct_fields__})
        bound = structlog.contextvars.get_contextvars()
        notes = context.notebook
        begin = Begin(
            capability.name,
            msgspec.Raw(msgspec.json.encode(value)),
            facts,
            bound,
            outcomes={name: outcome for name, outcome in notes.effects.items() if outcome is not None},
            unknown=[name for name, outcome in notes.effects.items() if outcome is None],
            saved=msgspec.UNSET if notes.saved is None else notes.saved,
        )
        listening = asyncio.create_task(self._listen(context))
        try:
            self._data.send(begin)
            context.pulse.beat()
            await asyncio.wait({listening, self._end}, return_when=asyncio.FIRST_COMPLETED)
            # Its last words may still be on their way, and its exit code comes after them.
            await asyncio.wait({listening}, timeout=_LAST_WORDS_S)
            outcome = listening.result() if listening.done() else None
            if outcome is not None:
                return outcome
            await asyncio.wait({self._end}, timeout=_LAST_WORDS_S)
            return _death(self._end.result() if self._end.done() else b"")
        finally:
            listening.cancel()
            for writing in self._writing:
                writing.cancel()

    def close(self) -> None:
        """Kill the process and all that it has started, if they are still there."""
        for task in (self._ready, self._end):
            task.cancel()
        if self._control is not None:
            self._control.close()
        self._data.close()
        self._line.close()

    async def _become_ready(self, born: Ready | None) -> Ready | Broken:
        frame: Frame | None = born or await self._data.receive()
        if isinstance(frame, Ready | Broken):
            return frame
        await asyncio.wait({self._end}, timeout=_LAST_WORDS_S)
        death = _death(self._end.result() if self._end.done() else b"")
        return Broken(str(death), death.trace)

    async def _listen(self, context: Context) -> bytes | Problem | None:
        """What comes of it; None if nothing does any more."""
        while True:
            match await self._data.receive():
                case Alive():
                    context.alive()
                case Reported() as said:
                    # Not waited for: a log that can't be reached must not keep signs of life from being heard.
                    context.progress(said.fraction, said.note)
                case Noted() as noted:
                    # Nor is this: the handler waits for it, and may give signs of life meanwhile.
                    writing = asyncio.create_task(self._write(context, noted))
                    self._writing.add(writing)
                    writing.add_done_callback(self._writing.discard)
                case Emitted() as emitted:
                    await context.emit(emitted.chunk)
                case Answered() as answered:
                    return bytes(answered.output)
                case Failed() as failed:
                    return failed.problem
                case _:
                    return None

    async def _write(self, context: Context, noted: Noted) -> None:
        """Write down what the handler noted, and tell it."""
        failure: BusError | None = None
        try:
            if context.notebook.writer is not None:
                await context.notebook.writer.write(noted.note)
        except BusError as error:
            failure = error
        self._data.send(answer_to(noted.number, failure))

    async def _listen_for_end(self) -> bytes:
        """What a crash has left and, behind a zero byte, the exit code."""
        said = b""
        with suppress(OSError):
            while keeper.ENDED not in said and (more := await self._line.reader.read(4096)):
                said += more
        return said


_Ends = tuple[socket.socket, socket.socket]


def _sockets(ours: ExitStack, theirs: ExitStack) -> tuple[_Ends, _Ends]:
    """Two pairs, for frames and for the line: our ends and theirs, each closed with its block."""
    pairs = [socket.socketpair() for _ in range(2)]
    for mine, other in pairs:
        ours.enter_context(mine)
        theirs.enter_context(other)
    (data, their_data), (line, their_line) = pairs
    return (data, line), (their_data, their_line)


def _death(said: bytes) -> Problem:
    """A process that ended without an answer, as a problem."""
    trace, _, code_text = said.partition(keeper.ENDED)
    code = int(code_text) if code_text else None
    kind: ErrorClass = "unknown"
    if code is None:
        title = "the handler's process is gone"
    elif code >= 0:
        title = f"the handler's process ended with exit code {code} before it answered"
    else:
        title = f"the handler's process was ended by {_signal_name(-code)}"
        if -code in _FROM_OUTSIDE:
            title, kind = f"{title}: by somebody, or by the system because memory was short", "transient"
    return Problem("crashed", title, kind, trace=trace.decode("utf-8", "replace")[-_TRACE_CHARACTERS:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
