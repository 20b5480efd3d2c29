"""From an order to a result: decode, call within a bound, encode. Whatever goes wrong becomes a Problem."""

from __future__ import annotations

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import msgspec

from bus.agent import Capability, Reject
from bus.context import Context
from bus.messages import MESSAGES
from bus.problem import ErrorClass, Problem
from bus.retry import RetryLater

_LETTING_GO_S = 1.0
_TRACE_CHARACTERS = 4_000
_DETAIL_CHARACTERS = 1_000

_CLASSES: tuple[tuple[type[BaseException], ErrorClass], ...] = (
    (TimeoutError, "transient"),
    (ConnectionError, "transient"),
    (ImportError, "configuration"),
    (PermissionError, "configuration"),
)


async def perform(capability: Capability, value: object, context: Context, *, timeout_s: float) -> bytes | Problem:
    """The handler's answer as JSON, or why there is none. Cancelling it cancels the handler.

    A handler that does not end when it is cancelled is left behind: it can't hold the attempt, and what it may
    still return is dropped here and refused by the log.
    """
    try:
        given = MESSAGES.convert(value, capability.takes)
    except Exception as error:  # noqa: BLE001 - a type's own check may raise anything
        return Problem("undecodable", f"the input does not fit {capability.name!r}", "permanent", detail=_text(error))
    task = asyncio.create_task(_call(capability, given, context))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        await _let_go(task)
        raise
    if not done:
        await _let_go(task)
        return Problem("timed_out", f"no result within {timeout_s:g} s", "transient")
    if task.cancelled():
        return Problem("handler_error", "the handler cancelled itself", "unknown")
    outcome = task.result()
    if isinstance(outcome, _Raised):
        return problem_of(outcome.error)
    return _encoded(capability, outcome)


def problem_of(error: BaseException) -> Problem:
    """An exception of a handler as a Problem, with its chain of causes."""
    match error:
        case Reject():
            return Problem("rejected", _text(error)[:_DETAIL_CHARACTERS] or "rejected", "permanent")
        case RetryLater():
            return Problem("retry_asked", _text(error)[:_DETAIL_CHARACTERS], "transient", retry_after_s=error.delay_s)
    kind: ErrorClass = next((kind for known, kind in _CLASSES if isinstance(error, known)), "unknown")
    trace = "".join(traceback.format_exception(error))
    return Problem(
        "handler_error",
        type(error).__name__,
        kind,
        detail=_text(error)[:_DETAIL_CHARACTERS],
        causes=tuple(_chain(error)),
        trace=_printable(trace[-_TRACE_CHARACTERS:]),
    )


class _Raised(msgspec.Struct):
    """What a handler raised, as a value: StopIteration can't cross a future, SystemExit would end the process."""

    error: BaseException


async def _call(capability: Capability, given: object, context: Context) -> Any:
    try:
        if capability.is_async:
            return await capability.call(given, context)
        answer = await _in_thread(lambda: capability.call(given, context))
        # A plain decorator around an `async def` hides that it is one.
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is reported as the attempt's problem
        return _Raised(error)


async def _in_thread(call: Callable[[], Any]) -> Any:
    """The answer of `call`, made in a thread of its own.

    Not in a pool: a call that never ends would take a place in it, and keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(outcome: Any) -> None:
        if not done.done():
            done.set_result(outcome)

    def work() -> None:
        try:
            outcome = call()
        except BaseException as error:  # noqa: BLE001 - it is reported as the attempt's problem
            outcome = _Raised(error)
        with suppress(RuntimeError):  # the loop has ended: nobody waits for this any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    return await done


async def _let_go(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_LETTING_GO_S)
    if not task.done():
        # Its exception is looked at, so that nothing complains about it when it ends one day.
        task.add_done_callback(lambda late: late.cancelled() or late.exception())


def _encoded(capability: Capability, answer: object) -> bytes | Problem:
    try:
        body = msgspec.json.encode(answer)
        msgspec.json.decode(body, type=capability.gives)
    except Exception as error:  # noqa: BLE001 - a type's own check may raise anything
        title = f"the answer of {capability.name!r} is not what it promises"
        return Problem("bad_output", title, "permanent", detail=_text(error))
    return body


def _chain(error: BaseException) -> list[str]:
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 10:
        chain.append(f"{type(link).__name__}: {_text(link)[:_DETAIL_CHARACTERS]}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _text(error: BaseException) -> str:
    try:
        return _printable(str(error))
    except Exception as broken:  # noqa: BLE001 - an exception whose own text raises must not stop the report
        return f"(no text: {type(broken).__name__})"


def _printable(text: str) -> str:
    """Without lone surrogates, which JSON can't carry."""
    return text.encode("utf-8", "replace").decode()
