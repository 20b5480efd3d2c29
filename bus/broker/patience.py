"""Patience: what changes nothing, or no more when it is done twice, is tried again while the server is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bus.broker.connection import Connection
from bus.errors import BusError, Unavailable

T = TypeVar("T")

_PAUSE_S = 0.05
# Who lost their lines together have them again within half a second of each other, or a little more if they are busy.
_TOGETHER_S = 1.0


async def patiently(
    connection: Connection,
    attempt: Callable[[], Awaitable[T]],
    limit_s: float,
    *,
    passing: tuple[type[BusError], ...] = (Unavailable,),
) -> T:
    """What an attempt gives, the first that does not raise what may be `passing`.

    Raises what the last one did when `limit_s` are over, or the connection is closed.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return await attempt()
        except passing:
            if connection.is_closed or not await _until_back(connection, deadline):
                raise


async def until_others_are_back(connection: Connection) -> bool:
    """Wait a moment, if the line is so new that who lost theirs with us may still be without; whether it is."""
    if connection.regained_s > _TOGETHER_S:
        return False
    await asyncio.sleep(_PAUSE_S)
    return True


async def _until_back(connection: Connection, deadline: float) -> bool:
    """Wait a moment, and for a line: nothing is queued for a server that is away. Whether there is one in time."""
    while time.monotonic() + _PAUSE_S <= deadline:
        await asyncio.sleep(_PAUSE_S)
        if connection.is_connected or connection.is_closed:
            return True
    return False
