"""Chaos: agents killed and frozen, the server killed, at random, while runs are started and go on.

The plan of faults depends on the seed alone: change SEED or SECONDS to look further.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

from bus import Client, Phase, Plan, Retry, connect, ref
from bus.errors import Unavailable
from bus.events import PhaseCompleted
from bus.ledger import utc_now
from bus.server import Server
from bus.verify import Violation, violations
from tests.harness import agent_process, agent_processes, agents_there, supervised

SLEEPER = Path(__file__).with_name("sleeper.py")
SEED = 7
SECONDS = 8
RUNS = 20
AGENTS = 4
SETTLED_S = 60.0

NAP = {"s": 0.1}
PATIENT = Retry(lost=50)
CHAIN = Plan(
    "chain",
    phases=[Phase(key, "nap", input=NAP, after=[key - 1] if key else [], retry=PATIENT) for key in range(8)],
)
FAN = Plan(
    "fan",
    phases=[
        Phase("first", "nap", input=NAP, retry=PATIENT),
        Phase("each", "nap", each=ref("input"), input=NAP, width=5, after=["first"], retry=PATIENT),
        Phase("last", "nap", input=NAP, after=["each"], retry=PATIENT),
    ],
)


async def test_every_run_ends_and_no_result_counts_twice_whatever_is_killed(server: Server) -> None:
    chance = random.Random(SEED)
    async with connect(server.url) as client, supervised(server):
        with agent_processes(server, SLEEPER, AGENTS) as agents:
            await agents_there(client, AGENTS)
            nemesis = asyncio.create_task(_nemesis(server, agents, chance))
            started = [await _start(client, chance.choice([CHAIN, FAN])) for _ in range(RUNS)]
            await nemesis
            for process in agents:
                if process.poll() is None:
                    process.send_signal(signal.SIGCONT)
            states = [await client.result(run, timeout_s=SETTLED_S) for run in started]
        accepted: Counter[tuple[str, str, int | None]] = Counter()
        broken: list[Violation] = []
        for run in started:
            commits = [commit async for commit in client.ledger.commits(run)]
            broken += violations(commits, utc_now())
            for commit in commits:
                for event in commit.events:
                    if isinstance(event, PhaseCompleted) and event.attempt is not None:
                        accepted[run, event.phase, event.item] += 1
    assert {state.status for state in states} == {"completed"}
    assert set(accepted.values()) == {1}
    assert not broken


async def _start(client: Client, plan: Plan) -> str:
    """An acknowledged start."""
    await asyncio.sleep(SECONDS / RUNS / 2)
    while True:
        try:
            return (await client.start(plan, list(range(6)))).run
        except Unavailable:
            await asyncio.sleep(0.1)


async def _nemesis(server: Server, agents: list[subprocess.Popen[bytes]], chance: random.Random) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + SECONDS
    while loop.time() < until:
        await asyncio.sleep(chance.random())
        match chance.choices(["kill", "freeze", "server"], [5, 2, 2])[0]:
            case "kill":
                place = chance.randrange(len(agents))
                agents[place].kill()
                agents[place].wait()
                agents[place] = agent_process(server, SLEEPER)
            case "freeze":
                chance.choice(agents).send_signal(signal.SIGSTOP)
            case "server":
                await server.kill()
                await server.restart()
