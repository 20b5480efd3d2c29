"""The ledger of messages: published = handled + dead + in flight, each exactly once, whatever is killed on the way.

The plan of faults depends on the seed alone: change SEED or SECONDS to look further.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from bus import Client, Phase, Plan, Refused, Retry, connect, ref
from bus.broker.server import Server
from bus.errors import Unavailable
from bus.rules.dead import DeadLetter, read
from bus.rules.events import PhaseCompleted, PhaseFailed, RunStarted, commit
from tests.harness import agent_process, agent_processes, agents_there

MORTAL = Path(__file__).with_name("mortal.py")
LEADER = Path(__file__).with_name("leader.py")
SEED = 11
SECONDS = 6
AGENTS = 4
MESSAGES = 80
LONELY = 10
SETTLED_S = 40.0

SOON = Retry(transient=2, unknown=1, lost=3, transient_s=0.1, unknown_s=0.1, lost_s=0.05)
# Poison is rare: each takes its process along four times, and whatever else that holds once.
HOW = ["ok"] * 8 + ["slow"] * 4 + ["flaky"] * 4 + ["refused"] * 4 + ["broken"] * 3


def plan(capability: str) -> Plan:
    return Plan("ledger", phases=[Phase("work", capability, input=ref("input"), retry=SOON, queue_timeout_s=600.0)])


async def test_what_was_published_is_handled_dead_or_in_flight_exactly_once(server: Server) -> None:
    chance = random.Random(SEED)
    how = ["poison", *(chance.choice(HOW) for _ in range(MESSAGES - 1))]
    chance.shuffle(how)
    wanted = {f"m{number}": each for number, each in enumerate(how)}
    async with connect(server.url) as client:
        with agent_processes(server, MORTAL, AGENTS) as agents:
            await agents_there(client, AGENTS)
            leaders = [_leader(server, f"leader-{number}") for number in range(2)]
            try:
                nemesis = asyncio.create_task(_nemesis(server, agents, leaders, chance))
                for name, each in wanted.items():
                    await _publish(client, name, "mortal.do", {"how": each})
                    await asyncio.sleep(SECONDS / MESSAGES / 2)
                for number in range(LONELY):
                    await _publish(client, f"lonely{number}", "nobody", {})
                await nemesis
                minding = asyncio.create_task(_mind(server, agents))
                async with asyncio.timeout(SETTLED_S):
                    for name in wanted:
                        await client.result(name, timeout_s=SETTLED_S)
                minding.cancel()
                with suppress(asyncio.CancelledError):
                    await minding
            finally:
                for each in leaders:
                    each.kill()
                    each.wait()
        await _must_balance(client, wanted)


async def _must_balance(client: Client, wanted: dict[str, str]) -> None:
    """Read from the log alone, and after each of its records."""
    published, handled, failed, dead = (Counter[str]() for _ in range(4))
    async for record in client.log.read(client.subjects.runs, client.subjects.dead_letters):
        message = record.envelope()
        if record.subject.startswith("bus.dead."):
            letter = read(message)
            assert isinstance(letter, DeadLetter)
            dead[letter.run] += 1
            assert letter.attempts[-1].problem is not None
            continue
        # A letter stands right behind the commit that gave its work up: nothing comes between.
        assert dead == failed, f"before position {record.position}"
        for event in commit(message, record.position).events:
            match event:
                case RunStarted():
                    published[record.subject.rpartition(".")[2]] += 1
                case PhaseCompleted():
                    handled[record.subject.rpartition(".")[2]] += 1
                case PhaseFailed():
                    failed[record.subject.rpartition(".")[2]] += 1
    in_flight = Counter(name for name in published if not handled[name] and not dead[name])
    assert dead == failed
    assert published == handled + dead + in_flight
    assert set(published.values()) == {1}
    assert set(published) == {*wanted, *(f"lonely{number}" for number in range(LONELY))}
    assert set(in_flight) == {f"lonely{number}" for number in range(LONELY)}
    assert {name for name in wanted if wanted[name] in {"refused", "broken", "poison"}} <= set(dead)
    assert [each.standing async for each in client.dead_letters()] == ["open"] * dead.total()


async def _publish(client: Client, name: str, capability: str, value: dict[str, str]) -> None:
    """Until it is acknowledged. A try whose answer was lost may have been stored: the id says so."""
    while True:
        try:
            await client.start(plan(capability), value, run=name)
        except Refused:
            return
        except Unavailable:
            await asyncio.sleep(0.1)
        else:
            return


def _leader(server: Server, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(LEADER), server.url, name], stderr=subprocess.DEVNULL)


async def _nemesis(
    server: Server,
    agents: list[subprocess.Popen[bytes]],
    leaders: list[subprocess.Popen[bytes]],
    chance: random.Random,
) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + SECONDS
    while loop.time() < until:
        await asyncio.sleep(chance.random() / 2)
        place = chance.randrange(AGENTS)
        match chance.choices(["agent", "leader", "server"], [4, 2, 2])[0]:
            case "agent":
                agents[place].kill()
                agents[place].wait()
                agents[place] = agent_process(server, MORTAL)
            case "leader":
                leaders[place % 2].kill()
                leaders[place % 2].wait()
                leaders[place % 2] = _leader(server, f"leader-{place % 2}")
            case "server":
                await server.kill()
                await server.restart()


async def _mind(server: Server, agents: list[subprocess.Popen[bytes]]) -> None:
    """What poison has taken along is started again."""
    while True:
        for place, process in enumerate(agents):
            if process.poll() is not None:
                agents[place] = agent_process(server, MORTAL)
        await asyncio.sleep(0.1)
