"""Dictation: what an isolated handler notes is written by its worker, over the socket between the two."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import threading
from collections.abc import Callable

from bus.errors import BusError, MalformedMessage, Refused, Unavailable
from bus.handlers.frames import Frame, Noted, Written
from bus.handlers.notebook import Note


class Dictation:
    """The handler's side: sends notes, and hears which are written, in a thread that begins with the first."""

    def __init__(self, send: Callable[[Frame], None], receive: Callable[[], Frame | None]) -> None:
        self._send = send
        self._receive = receive
        self._numbers = itertools.count(1)
        self._waiting: dict[int, concurrent.futures.Future[None]] = {}
        self._lock = threading.Lock()
        self._hearing: threading.Thread | None = None

    async def write(self, note: Note) -> None:
        """It is in the log when this returns. Raises Refused, Unavailable, MalformedMessage."""
        await asyncio.wrap_future(self._dictated(note))

    def write_now(self, note: Note) -> None:
        """As `write`, from a thread that waits: the worker answers, or ends this process."""
        self._dictated(note).result()

    def _dictated(self, note: Note) -> concurrent.futures.Future[None]:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = done
            if self._hearing is None:
                self._hearing = threading.Thread(target=self._hear, daemon=True)
                self._hearing.start()
        self._send(Noted(number, note))
        return done

    def _hear(self) -> None:
        while isinstance(written := self._receive(), Written):
            done = self._waiting.pop(written.number, None)
            # Who waited may have been cancelled.
            if done is not None and done.set_running_or_notify_cancel():
                error = error_in(written)
                done.set_result(None) if error is None else done.set_exception(error)


def answer_to(number: int, error: BusError | None) -> Written:
    """What the worker says of a note it has written, or has not."""
    match error:
        case None:
            return Written(number)
        case Refused():
            return Written(number, "refused", error.reason)
        case Unavailable():
            return Written(number, "unavailable", str(error))
        case _:
            return Written(number, "malformed", str(error))


def error_in(written: Written) -> BusError | None:
    """Why a note was not written, as the handler's process raises it."""
    match written.failure:
        case "":
            return None
        case "refused":
            return Refused(written.reason)
        case "unavailable":
            return Unavailable(written.reason)
        case "malformed":
            return MalformedMessage(written.reason)
