"""The lifespan of an agent's process: what is opened before it takes work, and closed when all work is done."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import structlog

from bus.errors import SettingsError, WarmUpFailed

logger = structlog.get_logger(__name__)

Opening = Callable[[], AsyncIterator[Any]]


class Lifespan(msgspec.Struct, frozen=True):
    """An async generator function that yields once, and how long it may take on either side of that."""

    function: Opening
    timeout_s: float


def lifespan(agent: str, function: Opening, timeout_s: float) -> Lifespan:
    """Raises SettingsError for what can't be one."""
    if not inspect.isasyncgenfunction(function) or inspect.signature(function).parameters:
        raise SettingsError(f"the lifespan of agent {agent!r} is an `async def` without parameters that yields once")
    if timeout_s <= 0:
        raise SettingsError(f"the lifespan of agent {agent!r}: timeout_s must be over 0")
    return Lifespan(function, timeout_s)


class Life:
    """One instance's passage through its agent's lifespan. `state` is what that yielded."""

    def __init__(self, agent: str, lifespan: Lifespan | None) -> None:
        self._agent = agent
        self._lifespan = lifespan
        self._open: AbstractAsyncContextManager[Any] | None = None
        self.state: Any = None

    async def begin(self, stop: asyncio.Event) -> bool:
        """Warm up. False: `stop` was set meanwhile. Raises WarmUpFailed. To be called in the task that calls `end`."""
        if self._lifespan is None:
            return not stop.is_set()
        opening = asynccontextmanager(self._lifespan.function)()
        stopped = asyncio.create_task(stop.wait())
        loop = asyncio.get_running_loop()
        logger.info("warming up")
        try:
            async with asyncio.timeout(self._lifespan.timeout_s) as bound:
                stopped.add_done_callback(lambda task: None if task.cancelled() else bound.reschedule(loop.time()))
                self.state = await opening.__aenter__()
        except Exception as error:
            if stop.is_set():
                return False
            logger.exception("warm-up failed")
            late = f"it took longer than {self._lifespan.timeout_s:g} s" if bound.expired() else ""
            where = inspect.getsourcefile(self._lifespan.function)
            raise WarmUpFailed(
                f"agent {self._agent!r} takes no work: its lifespan in {where} did not come to its yield, "
                f"{late or f'{type(error).__name__}: {error}'}"
            ) from error
        finally:
            stopped.cancel()
        self._open = opening
        return True

    async def end(self) -> None:
        """Close what was opened. What goes wrong is logged: all work is done by now."""
        if self._open is None or self._lifespan is None:
            return
        opening, self._open = self._open, None
        try:
            async with asyncio.timeout(self._lifespan.timeout_s):
                await opening.__aexit__(None, None, None)
        except Exception:
            logger.exception("shut-down failed")
