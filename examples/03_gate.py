"""A gate: the run waits for a person, and the answer is in the log with who gave it."""

import asyncio

import bus
from bus import Agent, Approval, Phase, Plan

agent = Agent("press")


@agent.capability("publish")
async def publish(_: object) -> str:
    """Says so."""
    return "published"


plan = Plan(
    "release",
    phases=[
        Phase("review", approval=Approval(prompt="good enough?", expires_s=3600, on_expiry="reject")),
        Phase("publish", "publish", after=["review"]),
    ],
)


async def main() -> None:
    """Watch the run, and answer when it waits."""
    async with bus.connect() as client, bus.serving(client, agent):
        run = (await client.start(plan)).run
        async for happening in client.watch(run):
            print(type(happening.event).__name__)
            if isinstance(happening.event, bus.events.PhaseWaiting):
                await client.approve(run, "review", by="alice", comment="ship it")


if __name__ == "__main__":
    asyncio.run(main())

# prints: RunStarted
# prints: PhaseWaiting
# prints: PhaseApproved
# prints: PhaseReady
# prints: PhaseStarted
# prints: PhaseCompleted
# prints: RunCompleted
