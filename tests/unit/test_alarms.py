"""Alarms ring in the order they were set, unless they are cleared before."""

from __future__ import annotations

import asyncio

from bus.worker.alarms import Alarms

AFTER_S = 0.02


async def test_each_rings_once_in_turn_and_not_before_its_time() -> None:
    alarms, rung = Alarms(AFTER_S), list[tuple[str, float, float]]()
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    def ringing(name: str, then: asyncio.Event | None = None) -> None:
        def ring(due_s: float) -> None:
            rung.append((name, due_s, loop.time()))
            if then is not None:
                then.set()

        alarms.set(ring)

    last = asyncio.Event()
    ringing("first")
    await asyncio.sleep(AFTER_S / 2)
    ringing("second", last)
    async with asyncio.timeout(10):
        await last.wait()
    assert [name for name, _, _ in rung] == ["first", "second"]
    assert all(began_s + AFTER_S <= due_s <= at_s for _, due_s, at_s in rung)
    await asyncio.sleep(2 * AFTER_S)
    assert len(rung) == 2


async def test_one_that_was_cleared_does_not_ring_and_keeps_no_other_from_it() -> None:
    alarms, rung = Alarms(AFTER_S), list[float]()
    heard = asyncio.Event()

    def cleared(due_s: float) -> None:
        rung.append(due_s)

    def kept(_: float) -> None:
        heard.set()

    alarms.set(cleared)
    alarms.set(kept)
    alarms.clear(cleared)
    async with asyncio.timeout(10):
        await heard.wait()
    alarms.clear(kept)
    assert rung == []


async def test_one_that_is_set_again_waits_anew_behind_who_was_set_meanwhile() -> None:
    alarms, rung = Alarms(AFTER_S), list[str]()
    heard = asyncio.Event()

    def patient(_: float) -> None:
        rung.append("patient")
        heard.set()

    alarms.set(patient)
    alarms.set(lambda _: rung.append("other"))
    alarms.set(patient)
    async with asyncio.timeout(10):
        await heard.wait()
    assert rung == ["other", "patient"]


async def test_one_may_set_itself_again_while_it_rings() -> None:
    alarms, rung = Alarms(AFTER_S), list[float]()
    heard = asyncio.Event()

    def twice(due_s: float) -> None:
        rung.append(due_s)
        if len(rung) == 1:
            alarms.set(twice)
        else:
            heard.set()

    alarms.set(twice)
    async with asyncio.timeout(10):
        await heard.wait()
    assert rung[1] >= rung[0] + AFTER_S
