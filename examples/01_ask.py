"""Ask: an agent with one capability, and a caller. Without NATS_URL a server of its own is started for the script."""

import asyncio

from msgspec import Struct

import bus
from bus import Agent, Context, Reject

CENTS = {"A-7": 250}


class Price(Struct, frozen=True):
    """What is asked."""

    sku: str
    quantity: int


class Priced(Struct, frozen=True):
    """What is answered."""

    total_cents: int


agent = Agent("pricing", version="1.2.0")


@agent.capability("price", timeout_s=30, concurrency=8)
async def price(query: Price, context: Context) -> Priced:
    """Price an order."""
    if query.sku not in CENTS:
        raise Reject(f"unknown sku {query.sku!r}")  # permanent: never retried
    await context.progress(0.5, "found the sku")
    return Priced(total_cents=CENTS[query.sku] * query.quantity)


async def main() -> None:
    """Ask twice: once for what there is, once for what there is not."""
    async with bus.connect() as client, bus.serving(client, agent):
        print(await client.ask("price", Price("A-7", 3), Priced, timeout_s=5))
        try:
            await client.ask("price", Price("B-9", 1), Priced, timeout_s=5)
        except bus.WorkFailed as failed:
            print(failed.problem.code, "-", failed.problem)


if __name__ == "__main__":
    asyncio.run(main())

# prints: Priced(total_cents=750)
# prints: rejected - unknown sku 'B-9'
