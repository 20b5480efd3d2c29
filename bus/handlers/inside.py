"""What runs in the process of an isolated handler. It imports the agent, and then is the process of an attempt, or
copies itself for each: a copy has nothing of other attempts in it, and takes milliseconds.

Only a process with a single thread can be copied safely. On macOS the system's libraries forbid it; there, and where
importing the agent has started threads, each attempt gets a process that has done its imports ahead.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog

from bus import logs
from bus.diagnosis import printable, text_of
from bus.handlers import frames
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import SAID, Context, Pulse, Said
from bus.handlers.dictation import Dictation
from bus.handlers.frames import Alive, Answered, Begin, Broken, Emitted, Failed, Frame, Ready, Reported, Setup
from bus.handlers.handling import answer
from bus.handlers.keeper import keep
from bus.handlers.notebook import Notebook
from bus.handlers.whereabouts import imported
from bus.problem import Problem
from bus.runs.steering import as_json

_ALIVE_EVERY_S = 0.05
_LOOK_EVERY_S = 0.5
_MIB = 2**20


def serve(data: int, line: int) -> None:
    """Import the agent that the first frame names, say so, and attend to what comes."""
    sock = socket.socket(fileno=data)
    sock.set_inheritable(False)
    os.set_inheritable(line, False)
    setup = _receive(sock)
    assert isinstance(setup, Setup), "the worker begins with it"
    try:
        agent = imported(setup)
    except BaseException as error:  # noqa: BLE001 - somebody else's module, which may do anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {text_of(error)} ({last.filename}, line {last.lineno})"
        _send(sock, Broken(reason, printable(traceback.format_exc())))
        return
    if not structlog.is_configured():
        logs.configure(setup.log_level, pretty=setup.pretty)
    forks = _can_fork()
    _send(sock, Ready(forks))
    if not forks:
        _attend(sock, line, agent)
        return
    # Copies are not waited for: each has a keeper of its own, which tells the worker.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, given, _, _ = socket.recv_fds(sock, 1, 2)
        if not asked:
            return
        with suppress(OSError):  # no room for a process: the worker sees its sockets end
            if os.fork() == 0:
                _be_a_copy(sock, line, agent, given)
        for fd in given:
            os.close(fd)


def _be_a_copy(template: socket.socket, template_line: int, agent: Agent, given: list[int]) -> NoReturn:
    try:
        template.close()
        os.close(template_line)
        for fd in given:
            os.set_inheritable(fd, False)
        data, line = given
        keep(lambda: _attend(socket.socket(fileno=data), line, agent), data, line)
    finally:
        os._exit(1)


def _attend(sock: socket.socket, line: int, agent: Agent) -> None:
    """One attempt. Its process ends with it."""
    begin = _receive(sock)
    if not isinstance(begin, Begin):
        return
    capability = agent.capabilities[begin.capability]
    if capability.memory_mb is not None:
        _bound_memory(capability.memory_mb)
    # A crash of the interpreter leaves its traceback where the exit code will stand.
    faulthandler.enable(file=line)
    structlog.contextvars.bind_contextvars(**begin.bound)
    voice = _Voice(sock)
    notebook = Notebook(
        {**begin.outcomes, **dict.fromkeys(begin.unknown)},
        None if begin.saved is msgspec.UNSET else begin.saved,
        Dictation(voice.send, lambda: _receive(sock)),
    )
    context = Context(
        **msgspec.structs.asdict(begin.facts), report=voice.report, sink=voice.emit, pulse=voice, notebook=notebook
    )
    threading.Thread(target=_end_with_keeper, args=(os.getppid(),), daemon=True).start()
    asyncio.run(_answer(capability, begin, context, voice))


async def _answer(capability: Capability, begin: Begin, context: Context, voice: _Voice) -> None:
    """Send the answer from within the loop: ending the loop may wait for what the handler has left in threads."""
    result = await answer(capability, msgspec.json.decode(begin.input), context)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    voice.send(Failed(result) if isinstance(result, Problem) else Answered(msgspec.Raw(result)))


def _end_with_keeper(keeper: int) -> None:
    """Whoever kills the keeper has ended the attempt, too: nobody else would see to it that it ends."""
    while os.getppid() == keeper:
        time.sleep(_LOOK_EVERY_S)
    os.killpg(0, signal.SIGKILL)


class _Voice(Pulse):
    """The handler's side of the socket: what it says, from whatever thread, is written at once."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock
        self._lock = threading.Lock()
        self._next = 0.0

    def beat(self) -> None:
        super().beat()
        if self.last >= self._next:
            self._next = self.last + _ALIVE_EVERY_S
            self.send(Alive())

    def report(self, fraction: float, note: str) -> Said:
        self.send(Reported(float(fraction), str(note).encode("utf-8", "replace").decode()))
        return SAID

    def emit(self, chunk: object) -> Said:
        self.send(Emitted(as_json(chunk)))
        return SAID

    def send(self, frame: Frame) -> None:
        with self._lock, suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone, and so are we
            self._sock.sendall(frames.encode(frame))


def _receive(sock: socket.socket) -> Frame | None:
    """The next frame, or None: there is none any more."""
    head = _exactly(sock, frames.LENGTH_BYTES)
    return frames.decode(_exactly(sock, frames.length(head))) if head else None


def _exactly(sock: socket.socket, count: int) -> bytes:
    body = bytearray(count)
    view = memoryview(body)
    while view:
        size = sock.recv_into(view)
        if not size:
            return b""
        view = view[size:]
    return bytes(body)


def _send(sock: socket.socket, frame: Frame) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(frames.encode(frame))


def _can_fork() -> bool:
    return sys.platform == "linux" and sum(1 for _ in Path("/proc/self/task").iterdir()) == 1


def _bound_memory(more_mb: int) -> None:
    """Let this process and those it starts take so much more address space than it has now. Linux only."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more_mb * _MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
