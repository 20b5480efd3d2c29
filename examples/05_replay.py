"""Replay: the state of a run as of any position is folded from the log; nothing else is ever stored."""

import asyncio

import bus
from bus import Agent, Phase, Plan

agent = Agent("steps")


@agent.capability("step", concurrency=2)
async def step(_: object) -> None:
    """Does nothing."""


plan = Plan("steps", phases=[Phase(-1, "step"), Phase(0, "step", after=[-1]), Phase(1, "step", after=[0])])


async def main() -> None:
    """Run it, then go through it again commit by commit."""
    async with bus.connect() as client, bus.serving(client, agent):
        run = (await client.start(plan)).run
        await client.result(run, timeout_s=5)
        async for commit in client.ledger.commits(run):
            state = await client.ledger.as_of(run, commit.position)
            names = " ".join(type(event).__name__ for event in commit.events)
            statuses = " ".join(phase.status for phase in state.phases.values())
            print(f"{names}: {statuses}")


if __name__ == "__main__":
    asyncio.run(main())

# prints: RunStarted PhaseReady: ready pending pending
# prints: PhaseStarted: in_progress pending pending
# prints: PhaseCompleted PhaseReady PhaseStarted: completed in_progress pending
# prints: PhaseCompleted PhaseReady PhaseStarted: completed completed in_progress
# prints: PhaseCompleted RunCompleted: completed completed completed
