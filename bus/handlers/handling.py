"""From an order to a result: decode, call within bounds, encode. Whatever goes wrong becomes a Problem."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import msgspec

from bus.clock import utc_now
from bus.diagnosis import problem_of, text_of
from bus.format.messages import MESSAGES
from bus.handlers.agent import Capability
from bus.handlers.context import Context
from bus.problem import Problem
from bus.runs.causality import serve

Answer = Callable[[Capability, object, Context], Coroutine[Any, Any, bytes | Problem]]

_LETTING_GO_S = 1.0


class Halted(msgspec.Struct, frozen=True):
    """Nobody wants the result any more, for this reason; there is none."""

    reason: str


async def answer(capability: Capability, value: object, context: Context) -> bytes | Problem:
    """The handler's answer as JSON, or why there is none, however long it takes. In a task of its own: see `serve`."""
    context.pulse.beat()
    try:
        given = MESSAGES.convert(value, capability.takes)
    except Exception as error:  # noqa: BLE001 - a type's own check may raise anything
        return Problem("undecodable", f"the input does not fit {capability.name!r}", "permanent", detail=text_of(error))
    serve(context)
    outcome = await _call(capability, given, context)
    if isinstance(outcome, _Raised):
        return problem_of(outcome.error, utc_now(), capability.classify)
    return _encoded(capability, outcome)


async def perform(
    capability: Capability,
    value: object,
    context: Context,
    *,
    timeout_s: float,
    silence_s: float | None = None,
    answer: Answer = answer,
) -> bytes | Problem | Halted:
    """The answer within bounds: at most `timeout_s`, at most `silence_s` without a sign of life, and only as long as
    somebody waits for it. Cancelling this cancels the handler.

    A handler that does not end when it is cancelled is left behind: it can't hold the attempt, and what it may
    still return is dropped here and refused by the log.
    """
    pulse = context.pulse
    task = asyncio.create_task(answer(capability, value, context))
    deadline = time.monotonic() + timeout_s
    try:
        # Many a handler waits for nothing: then it is done after one pass, and there is nothing to watch.
        await asyncio.sleep(0)
        awaited: set[asyncio.Future[Any]] = {task, pulse.bell()} if not task.done() else set()
        while True:
            left_s = deadline - time.monotonic()
            quiet_s = math.inf if silence_s is None else pulse.last + silence_s - time.monotonic()
            if not pulse.wanted or task.done() or left_s <= 0 or quiet_s <= 0:
                break
            # Before the handler has begun its silence is endless: looked at again after as long as it may last.
            bound_s = min(left_s, quiet_s, silence_s or math.inf)
            await asyncio.wait(awaited, timeout=bound_s, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        pulse.end("the worker was stopped")
        await _let_go(task)
        raise
    if not pulse.wanted:
        await _let_go(task)
        return Halted(pulse.ended)
    if task.done():
        if task.cancelled():
            return Problem("handler_error", "the handler cancelled itself", "unknown")
        return task.result()
    if left_s <= 0:
        late = Problem("timed_out", f"no result within {round(timeout_s, 2 if timeout_s < 1 else 1):g} s", "transient")
    else:
        late = Problem("silent", f"the handler said nothing of itself for {silence_s:g} s", "transient")
    pulse.end(late.title)
    await _let_go(task)
    return late


class _Raised(msgspec.Struct):
    """What a handler raised, as a value: StopIteration can't cross a future, and SystemExit or KeyboardInterrupt would
    end the process, with the work of all others in it."""

    error: BaseException


async def _call(capability: Capability, given: object, context: Context) -> Any:
    try:
        if capability.is_async:
            return await capability.call(given, context)
        answer = await _in_thread(lambda: capability.call(given, context))
        # A plain decorator around an `async def` hides that it is one.
        return await answer if inspect.isawaitable(answer) else answer
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - it is reported as the attempt's problem
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
        return Problem("bad_output", title, "permanent", detail=text_of(error))
    return body
