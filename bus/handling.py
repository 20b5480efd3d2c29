"""From an order to a result: decode, call within a bound, encode. Whatever goes wrong becomes a Problem."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import msgspec

from bus.agent import Capability, Reject
from bus.context import Context
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
        given = msgspec.convert(value, capability.takes)
    except msgspec.ValidationError as error:
        return Problem("undecodable", f"the input does not fit {capability.name!r}", "permanent", detail=str(error))
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
    raised = task.exception()
    if raised is not None:
        return problem_of(raised)
    return _encoded(capability, task.result())


def problem_of(error: BaseException) -> Problem:
    """An exception of a handler as a Problem, with its chain of causes."""
    match error:
        case Reject():
            return Problem("rejected", str(error) or "rejected", "permanent")
        case RetryLater():
            return Problem("retry_asked", str(error), "transient", retry_after_s=error.delay_s)
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


async def _call(capability: Capability, given: object, context: Context) -> Any:
    if capability.is_async:
        answer = capability.call(given, context)
        assert asyncio.iscoroutine(answer), "an async handler returns a coroutine"
        return await answer
    return await asyncio.to_thread(capability.call, given, context)


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
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        title = f"the answer of {capability.name!r} is not what it promises"
        return Problem("bad_output", title, "permanent", detail=str(error))
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
