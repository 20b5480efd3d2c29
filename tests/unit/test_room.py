"""Room: never more than there is, pulled work first, and nobody who gave up keeps a place."""

from __future__ import annotations

import asyncio

from bus.worker.room import Room


async def test_there_are_only_so_many_places() -> None:
    freed: list[int] = []
    room = Room(2, freed.append)
    assert [await room.enter(0.0, handed=True) for _ in range(3)] == [True, True, False]
    room.leave()
    assert freed == [1]
    assert await room.enter(0.0, handed=False)


async def test_pulled_work_goes_before_what_was_handed_over() -> None:
    room = Room(1, lambda _free: None)
    await room.enter(0.0, handed=True)
    entered: list[str] = []

    async def enter(what: str) -> None:
        if await room.enter(20.0, handed=what == "handed"):
            entered.append(what)

    waiting = [asyncio.create_task(enter(what)) for what in ("handed", "pulled")]
    for _ in range(3):
        await asyncio.sleep(0)
    for count in (1, 2):
        room.leave()
        while len(entered) < count:
            await asyncio.sleep(0)
    assert entered == ["pulled", "handed"]
    await asyncio.gather(*waiting)


async def test_who_is_cancelled_in_line_keeps_no_place() -> None:
    room = Room(1, lambda _free: None)
    await room.enter(0.0, handed=True)
    waiting = asyncio.create_task(room.enter(20.0, handed=True))
    await asyncio.sleep(0)
    # Let in and cancelled in the same turn of the loop.
    room.leave()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert await room.enter(0.0, handed=True)
