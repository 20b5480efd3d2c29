"""Reach: a question to everybody, answered by everybody, without a guess how many that is.

The server says which subscriptions it has handed the question to (message tracing, ADR-41, from 2.11 on), so asking
ends with the last answer. Who was handed it and says nothing is known by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from bus.broker.connection import NO_RESPONDERS, Connection, Message
from bus.errors import Unavailable

_QUIET_S = 0.25
"""How long nobody may answer before those that have not are given up."""
_SERVER_S = 2.0
_TRACE = ".trace"
_CLIENT = 0


class Reached(NamedTuple):
    """The answers, and for each subscription that was handed the question the name of its connection."""

    answers: Sequence[Message]
    names: Sequence[str]


class _Step(msgspec.Struct, frozen=True):
    type: str = ""
    kind: int = 0
    name: str = ""
    sub: str = ""
    error: str = ""


class _Trace(msgspec.Struct, frozen=True):
    events: Sequence[_Step] = ()
    hops: int = 0


_trace = msgspec.json.Decoder(_Trace)


async def ask_all(connection: Connection, subject: str, data: bytes = b"", *, quiet_s: float = _QUIET_S) -> Reached:
    """Ask everybody who is subscribed to exactly `subject`; ends with the last answer.

    Without the server's word (it may be forbidden to trace), and while somebody is silent, it ends when no answer has
    come for `quiet_s`. Raises Unavailable when the line is lost or the server is silent, too, and otherwise as
    `Connection.publish`.
    """
    inbox = connection.new_inbox()
    answers: list[Message] = []
    traces: list[_Trace] = []
    names: list[str] = []
    woken = asyncio.Event()
    nobody = False

    def take(message: Message) -> None:
        nonlocal nobody
        if message.subject.endswith(_TRACE):
            traces.append(trace := _read(message))
            names.extend(each.name for each in trace.events if _is_delivery(each, subject))
        elif message.status == NO_RESPONDERS:
            nobody = True
        else:
            answers.append(message)
            if not traces or len(answers) < len(names):
                # More are on their way: waking up for each would cost more than taking it.
                return
        woken.set()

    disconnects = connection.disconnects
    subscription = connection.subscribe(f"{inbox}.*", take)
    forget = connection.on_disconnect(woken.set)
    try:
        connection.publish(subject, data, headers={"Nats-Trace-Dest": inbox + _TRACE}, reply=f"{inbox}.answer")
        # Silence says nothing of anybody until the server has handed the question out: it may be frozen itself.
        await connection.flush(_SERVER_S)
        seen = -1
        while not nobody and not _is_complete(traces, len(names), len(answers)):
            if connection.disconnects != disconnects or connection.is_closed:
                raise Unavailable(f"the line was lost while {subject!r} was answered: ask again")
            if seen == len(answers) + len(traces):
                # And nothing if it has been frozen since.
                await connection.flush(_SERVER_S)
                if seen == len(answers) + len(traces):
                    break
            seen = len(answers) + len(traces)
            woken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(quiet_s):
                    await woken.wait()
    finally:
        subscription.unsubscribe()
        forget()
    return Reached(answers, names)


def _is_complete(traces: Sequence[_Trace], reached: int, answered: int) -> bool:
    """Whether every server the question went through has spoken, and as many have answered as it was handed to."""
    return bool(traces) and len(traces) == 1 + sum(each.hops for each in traces) and answered >= reached


def _is_delivery(step: _Step, subject: str) -> bool:
    """Not what goes on to another server, nor to who listens in with a wildcard."""
    return step.type == "eg" and step.kind == _CLIENT and step.sub == subject and not step.error


def _read(message: Message) -> _Trace:
    try:
        return _trace.decode(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Trace()
