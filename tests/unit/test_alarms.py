"""Alarms ring in the order of their times, unless they are cleared before."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from bus.alarms import Alarms

AFTER_S = 0.02
_whose: ContextVar[str] = ContextVar("whose", default="nobody")


async def test_each_rings_once_in_the_order_of_their_times_and_not_before_its_own() -> None:
    alarms, rung = Alarms(), list[tuple[str, float]]()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def ringing(name: str) -> Callable[[], None]:
        return lambda: rung.append((name, loop.time()))

    began_s = loop.time()
    alarms.set(3 * AFTER_S, ended.set)
    alarms.set(2 * AFTER_S, ringing("later"))
    alarms.set(AFTER_S, ringing("soon"))
    alarms.set(AFTER_S, ringing("soon too"))
    async with asyncio.timeout(10):
        await ended.wait()
    assert [name for name, _ in rung] == ["soon", "soon too", "later"]
    assert all(at_s - began_s > after * AFTER_S * 0.99 for (_, at_s), after in zip(rung, (1, 1, 2), strict=True))


async def test_one_that_was_cleared_does_not_ring_and_keeps_no_other_from_it() -> None:
    alarms, rung, heard = Alarms(), list[str](), asyncio.Event()
    first = alarms.set(AFTER_S, partial(rung.append, "first"))
    second = alarms.set(2 * AFTER_S, heard.set)
    alarms.clear(first)
    async with asyncio.timeout(10):
        await heard.wait()
    alarms.clear(second)
    assert rung == []


async def test_one_may_set_another_while_it_rings() -> None:
    alarms, heard = Alarms(), asyncio.Event()
    alarms.set(AFTER_S, lambda: alarms.set(AFTER_S, heard.set) and None)
    async with asyncio.timeout(10):
        await heard.wait()


async def test_the_others_ring_whatever_one_raises() -> None:
    alarms, heard, raised = Alarms(), asyncio.Event(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))

    def broken() -> None:
        raise ValueError("no bell")

    alarms.set(AFTER_S, broken)
    alarms.set(AFTER_S, heard.set)
    async with asyncio.timeout(10):
        await heard.wait()
    assert [str(each) for each in raised] == ["no bell"]


async def test_none_rings_in_the_context_of_whoever_set_another() -> None:
    """One timer is for all of them: they rang in that of whoever was first, which was kept for as long as any came."""
    alarms, rung, heard = Alarms(), list[str](), asyncio.Event()

    async def first() -> None:
        _whose.set("the first")
        alarms.set(AFTER_S, lambda: rung.append(_whose.get()))

    await asyncio.create_task(first())
    alarms.set(2 * AFTER_S, lambda: rung.append(_whose.get()))
    alarms.set(3 * AFTER_S, heard.set)
    async with asyncio.timeout(10):
        await heard.wait()
    assert rung == ["nobody", "nobody"]


async def test_one_whose_time_is_no_number_rings_at_once_and_keeps_no_other_from_it() -> None:
    alarms, odd, heard = Alarms(), asyncio.Event(), asyncio.Event()
    alarms.set(math.nan, odd.set)
    alarms.set(AFTER_S, heard.set)
    async with asyncio.timeout(10):
        await odd.wait()
        await heard.wait()


async def test_thousands_that_were_cleared_leave_nothing_behind() -> None:
    alarms = Alarms()
    kept = alarms.set(3600, lambda: None)
    for _ in range(10_000):
        alarms.clear(alarms.set(3600, lambda: None))
    assert len(alarms._due) < 100
    alarms.clear(kept)


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=200))
def test_whatever_is_set_and_cleared_those_that_are_left_ring_in_order(plan: list[tuple[int, bool]]) -> None:
    async def main() -> list[int]:
        alarms, rung, ended = Alarms(), list[int](), asyncio.Event()
        numbers = [(alarms.set(after / 1000, partial(rung.append, after)), stays) for after, stays in plan]
        for number, stays in numbers:
            if not stays:
                alarms.clear(number)
        alarms.set(5 / 1000, ended.set)
        async with asyncio.timeout(10):
            await ended.wait()
        return rung

    assert sorted(asyncio.run(main())) == sorted(after for after, stays in plan if stays)
