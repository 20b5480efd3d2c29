"""A plan: one phase makes a list, the next goes over it three at a time, the last one adds up."""

import asyncio

import bus
from bus import Agent, Phase, Plan, ref

agent = Agent("numbers")


@agent.capability("numbers.list")
async def listed(query: dict[str, int]) -> list[int]:
    """The numbers from 1."""
    return list(range(1, query["upto"] + 1))


@agent.capability("numbers.square", concurrency=4)
def square(number: int) -> int:
    """An ordinary function: it runs in a thread, and can be called in a unit test."""
    return number * number


@agent.capability("numbers.sum")
async def total(numbers: list[int]) -> int:
    """The sum."""
    return sum(numbers)


plan = Plan(
    "squares",
    version="1",
    phases=[
        Phase("list", "numbers.list", input={"upto": ref("input.upto")}),
        Phase("square", "numbers.square", each=ref("list"), width=3),
        Phase("sum", "numbers.sum", input=ref("square"), timeout_s=10),
    ],
)


async def main() -> None:
    """Start a run, wait for it, look at what came of it."""
    async with bus.connect() as client, bus.serving(client, agent):
        run = await client.start(plan, {"upto": 10})
        state = await client.result(run.run, timeout_s=30)
        print(state.status, client.output(state, "sum", int))
        for key, phase in state.phases.items():
            print(key, phase.status, len(phase.items))


if __name__ == "__main__":
    asyncio.run(main())

# prints: completed 385
# prints: list completed 1
# prints: square completed 10
# prints: sum completed 1
