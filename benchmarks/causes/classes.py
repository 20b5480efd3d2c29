"""The classes: what is really made to happen, and what is to be said of it. Each makes so many runs of its kind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from benchmarks.causes.ward import Ward
from bus import Approval, Phase, Plan

Make = Callable[[Ward, int], Awaitable[list[str]]]

_PAST_RUNS = 10
_LANES = 4


class Class(NamedTuple):
    """A class of cause: how it is made, and the word each of those asked has for it; without one, nothing is wrong
    that it could know of. `supervisor` is what the log has to say if one leads."""

    make: Make
    doctor: str
    attention: str
    supervisor: str = "nothing"


async def _each(ward: Ward, count: int, one: Callable[[int], Awaitable[str]]) -> list[str]:
    """So many, a few at a time: each starts a process."""
    lanes = asyncio.Semaphore(_LANES)

    async def in_turn(number: int) -> str:
        async with lanes:
            return await one(number)

    return await asyncio.gather(*map(in_turn, range(count)))


async def _signalled(ward: Ward, count: int, number: signal.Signals) -> list[str]:
    async def one(_: int) -> str:
        capability = ward.name("hold")
        post = await ward.process(capability)
        run = await ward.held(await ward.start(capability, _talking(ward)))
        await asyncio.sleep(ward.random.uniform(0, 1))
        post.signal(number)
        return run

    return await _each(ward, count, one)


async def killed(ward: Ward, count: int) -> list[str]:
    """Its process gets SIGKILL in the middle of the work."""
    return await _signalled(ward, count, signal.SIGKILL)


async def stopped(ward: Ward, count: int) -> list[str]:
    """Its process gets SIGSTOP."""
    return await _signalled(ward, count, signal.SIGSTOP)


async def blocked(ward: Ward, count: int) -> list[str]:
    """`time.sleep` in an `async def`."""

    async def one(_: int) -> str:
        capability = ward.name("block")
        await ward.process(capability)
        return await ward.held(await ward.start(capability, {"after_s": ward.random.uniform(0, 1)}))

    return await _each(ward, count, one)


async def silent(ward: Ward, count: int) -> list[str]:
    """Handlers that wait for what never comes: every second after having said something, the others without a word,
    where those of earlier runs have talked."""
    capability, plan = ward.name("talk"), ward.name("talkers").replace(".", "-")
    await ward.process(capability)
    for _ in range(_PAST_RUNS):
        await ward.ended(await ward.start(capability, {"says": 2, "gap_s": 0.05}, plan=plan))
    runs = []
    for number in range(count):
        if number % 2:
            words: dict[str, object] = {"says": 0, "gap_s": 0.0, "for_ever": True}
            runs.append(await ward.start(capability, words, plan=plan))
        else:
            words = {"says": ward.random.randint(1, 3), "gap_s": ward.random.uniform(0.6, 1.0), "for_ever": True}
            runs.append(await ward.start(capability, words))
    return [await ward.held(run) for run in runs]


async def silent_bounded(ward: Ward, count: int) -> list[str]:
    """The same with `silence_s`, which ends them."""
    capability = ward.name("talk")
    await ward.process(capability, silence_s=1)
    return [await ward.start(capability, {"says": 1, "gap_s": 0, "for_ever": True}) for _ in range(count)]


async def slow(ward: Ward, count: int) -> list[str]:
    """Longer than ever before, and alive: every second says how it gets on, the others never have."""
    talkers, others = (ward.name(word).replace(".", "-") for word in ("talkers", "others"))
    capability = ward.name("hold")
    await ward.process(capability)
    for _ in range(_PAST_RUNS):
        for plan, says in ((talkers, 2), (others, 0)):
            took: dict[str, object] = {"s": ward.random.uniform(0.05, 0.1), "says": says, "gap_s": 0.02}
            await ward.ended(await ward.start(capability, took, plan=plan))
    runs = []
    for number in range(count):
        told: dict[str, object] = {"says": 3600, "gap_s": ward.random.uniform(0.6, 1.2)} if number % 2 else {}
        runs.append(await ward.start(capability, told, plan=talkers if number % 2 else others))
    return [await ward.held(run) for run in runs]


async def unserved(ward: Ward, count: int) -> list[str]:
    """No agent has the capability."""
    return [await ward.start(ward.name("nobody"), {}) for _ in range(count)]


async def crowded(ward: Ward, count: int) -> list[str]:
    """All places for the capability are taken."""

    async def one(_: int) -> str:
        capability = ward.name("hold")
        await ward.process(capability, places=1)
        await ward.held(await ward.start(capability, {}))
        return await ward.start(capability, {})

    return await _each(ward, count, one)


async def approval(ward: Ward, count: int) -> list[str]:
    """A gate that nobody has answered."""
    gate = Phase("gate", approval=Approval())
    return [await ward.run(Plan(ward.name("gate").replace(".", "-"), phases=[gate])) for _ in range(count)]


async def awaited(ward: Ward, count: int) -> list[str]:
    """A signal that nobody has given."""
    gate = Phase("gate", wait_for="window")
    return [await ward.run(Plan(ward.name("gate").replace(".", "-"), phases=[gate])) for _ in range(count)]


async def child(ward: Ward, count: int) -> list[str]:
    """A run of its own, whose work goes on well."""
    capability = ward.name("hold")
    await ward.process(capability)
    inside = Plan("inside", phases=[Phase("work", capability, input={})])
    outside = [Plan(ward.name("outside").replace(".", "-"), phases=[Phase("run", plan=inside)]) for _ in range(count)]
    return [await ward.run(each) for each in outside]


async def lock(ward: Ward, count: int) -> list[str]:
    """A lock that somebody else has."""
    capability = ward.name("lock")
    await ward.process(capability)
    runs = []
    for _ in range(count):
        name = ward.name("deploy").replace(".", "-")
        await ward.exits.enter_async_context(ward.client.lock(name, by="somebody", ttl_s=3600))
        runs.append(await ward.held(await ward.start(capability, {"name": name})))
    return runs


async def breaker(ward: Ward, count: int) -> list[str]:
    """The breaker of its capability is open, so nobody takes it."""
    capabilities = [ward.name("hold") for _ in range(count)]
    await ward.process(*capabilities, breaker=True)
    runs = []
    for capability in capabilities:
        await ward.client.open_breaker(capability, by="bench", reason="it is down")
        runs.append(await ward.start(capability, {}))
    return runs


async def well(ward: Ward, count: int) -> list[str]:
    """Work that goes on, talking or not, with no past to compare it with; and work just taken."""
    capability = ward.name("hold")
    await ward.process(capability)
    return [await ward.held(await ward.start(capability, _talking(ward))) for _ in range(count)]


def _talking(ward: Ward) -> dict[str, object]:
    """What a sound handler is told: half of them say how they get on."""
    return {"says": 3600, "gap_s": ward.random.uniform(0.6, 1.2)} if ward.random.random() < 0.5 else {}


CLASSES: Mapping[str, Class] = {
    "dead": Class(killed, "dead", "dead", "crashed"),
    "frozen": Class(stopped, "frozen", "frozen", "frozen"),
    "loop blocked": Class(blocked, "loop_blocked", "loop_blocked", "blocked"),
    "silent": Class(silent, "silent", "silent"),
    "silent, silence_s": Class(silent_bounded, "silent", "nothing", "silent"),
    "nobody offers it": Class(unserved, "unserved", "unserved", "starved"),
    "all places taken": Class(crowded, "starved", "starved"),
    "waits: approval": Class(approval, "approval", "approval"),
    "waits: signal": Class(awaited, "signal", "signal"),
    "waits: child run": Class(child, "child", "nothing"),
    "waits: lock": Class(lock, "lock", "lock"),
    "waits: breaker": Class(breaker, "breaker_open", "breaker_open"),
    "merely slow": Class(slow, "slow", "slow"),
    "well": Class(well, "nothing", "nothing"),
}
