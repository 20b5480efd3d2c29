"""A service that falls ill: its breaker opens everywhere, another provider answers, and a budget bounds all agents."""

import asyncio

import bus
from bus import Breaker, BudgetSpent, CircuitOpen, Provider

is_ill = True


async def large(question: str) -> str:
    """The provider that is wanted most."""
    if is_ill:
        raise ConnectionError("no route to host")
    return f"{question} At length: 42."


async def small(question: str) -> str:
    """The one to ask when there is no other."""
    return f"{question} 42."


async def main() -> None:
    """Meet the illness, work around it, and see it end."""
    global is_ill  # noqa: PLW0603 - the service's own state
    async with bus.connect() as client:
        policy = Breaker(calls=3, cooldown_s=0.2)
        providers = [Provider("large", large, policy), Provider("small", small)]
        for _ in range(4):
            answer = await client.fallback(providers, "Why?")
            miss = answer.misses[0]
            print(answer.value, "degraded:", answer.degraded, "- asked:", miss.asked, f"({miss.problem.title})")

        breaker = client.breaker("large")
        try:
            async with breaker:
                print("never gets here")
        except CircuitOpen as error:
            print(error.breaker, "is", breaker.state.status, "- opened after", breaker.state.reason)

        is_ill = False
        await breaker.until_admitting()
        answer = await client.fallback(providers, "Why?")  # the probe: one call, whoever makes it
        print(answer.value, "degraded:", answer.degraded)

        budget = client.limit("large", cost_per_day=10)  # of all agents together
        allowance = await budget.take(cost=8)
        try:
            await budget.take(cost=3)
        except BudgetSpent as error:
            print(error.limit, "is spent")
        allowance.settle(cost=2)  # it was cheaper than feared
        await asyncio.sleep(0.5)
        await budget.take(cost=3)

        breakers = [record.envelope().type async for record in client.log.read(client.subjects.breaker("large"))]
        print(*breakers)


if __name__ == "__main__":
    asyncio.run(main())

# prints: Why? 42. degraded: True - asked: True (ConnectionError)
# prints: Why? 42. degraded: True - asked: True (ConnectionError)
# prints: Why? 42. degraded: True - asked: True (ConnectionError)
# prints: Why? 42. degraded: True - asked: False (CircuitOpen)
# prints: large is open - opened after ConnectionError: no route to host
# prints: Why? At length: 42. degraded: False
# prints: large is spent
# prints: breaker.opened.v1 breaker.probing.v1 breaker.closed.v1
