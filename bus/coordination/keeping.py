"""Keeping a lease: renewed by the event loop that does what it is for, until it is given back or lost.

So a loop that is blocked, or a process that is frozen, loses it by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import structlog

from bus.coordination.held import Lease
from bus.coordination.leases import Leases
from bus.errors import BusError, LeaseLost

logger = structlog.get_logger(__name__)

_RENEWALS = 3
_PAUSE_S = 0.1


@asynccontextmanager
async def held(leases: Leases, lease: Lease) -> AsyncIterator[Lease]:
    """Keep it while the block runs, and give it back. The block is cancelled when it is lost; LeaseLost is raised.

    Who forgets to check would go on in somebody else's time.
    """
    bound = asyncio.timeout(lease.remaining_s)
    try:
        async with bound:
            keeping = asyncio.create_task(keep(leases, lease, lambda: _reschedule(bound, lease)))
            try:
                yield lease
            finally:
                # Nothing is awaited here: a block that has ended can't be cancelled any more.
                keeping.cancel()
    except TimeoutError:
        if not bound.expired():
            await leases.let_go(lease)
            raise
        await leases.give_up(lease)
        raise lease.lost() from None
    except BaseException:
        await leases.let_go(lease)
        raise
    await leases.let_go(lease, is_checked=True)


async def keep(leases: Leases, lease: Lease, changed: Callable[[], None]) -> None:
    """Renew it until it is lost, which is seen at once if the log says so. `changed` is called after each step."""
    told = asyncio.Event()
    copies = leases.watch(lease, told.set)
    try:
        while lease.is_held:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(lease.ttl_s / _RENEWALS, lease.remaining_s)):
                    await told.wait()
            await _renew_or_lose(leases, lease, told)
            changed()
    finally:
        copies.unsubscribe()


async def _renew_or_lose(leases: Leases, lease: Lease, told: asyncio.Event) -> None:
    """Try until it is renewed, or lost."""
    while lease.is_held:
        try:
            if told.is_set():
                told.clear()
                await leases.check_with_log(lease)
            await leases.renew(lease)
        except LeaseLost:
            return
        except BusError as error:
            logger.warning("lease not renewed yet", lease=lease.what, error=str(error))
            told.set()  # what the log says is still to be looked at
            await asyncio.sleep(_PAUSE_S)
        else:
            return


def _reschedule(bound: asyncio.Timeout, lease: Lease) -> None:
    if not bound.expired():
        bound.reschedule(asyncio.get_running_loop().time() + lease.remaining_s)
