"""Messages: asked, sent once, told by name, published, and an answer that comes in parts."""

import asyncio

from msgspec import Struct

import bus
from bus import Agent, Context


class Order(Struct, frozen=True):
    """A fact that is published, and work that is sent."""

    number: int


class Closing(Struct, frozen=True):
    """Told to the shop alone."""

    at: str


agent = Agent("shop")
heard: asyncio.Queue[str] = asyncio.Queue()


@agent.capability("pack", concurrency=4)
async def pack(order: Order, context: Context) -> str:
    """Pack an order, and tell everybody. Whoever looks at the log sees which order led to what."""
    await context.client.publish("orders.packed", order)
    return f"parcel {order.number}"


@agent.capability("describe")
async def describe(order: Order, context: Context) -> int:
    """An answer in parts, as a language model gives it."""
    words = f"order {order.number} is ready".split()
    for word in words:
        await context.emit(word)
    return len(words)


@agent.subscribe("orders.*", name="ledger", after="start")
async def count(order: Order) -> None:
    """Hears every order that was packed, once, also those from when nobody was there."""
    heard.put_nowait(f"heard of order {order.number}")


@agent.mail()
async def hear(closing: Closing) -> None:
    """Hears what is told to this agent."""
    heard.put_nowait(f"closing at {closing.at}")


async def main() -> None:
    """Use each verb once."""
    async with bus.connect() as client, bus.serving(client, agent):
        print(await client.ask("pack", Order(1), str), "|", await client.ask("pack", Order(1), str, fast=True))
        print(await heard.get(), "|", await heard.get())

        first = await client.send("pack", Order(2), id="order 2")
        again = await client.send("pack", Order(2), id="order 2")
        print("sent once:", first.run == again.run, again.duplicate, "|", await heard.get())

        await client.tell("shop", Closing("18:00"))
        print(await heard.get())

        stream = client.stream("describe", Order(3), str)
        print([part.value async for part in stream], await stream.answer(int))

        async for news in client.subscribe("orders.>", Order, after=0):
            print(news.topic, news.value)
            if news.value == Order(2):
                break


if __name__ == "__main__":
    asyncio.run(main())

# prints: parcel 1 | parcel 1
# prints: heard of order 1 | heard of order 1
# prints: sent once: True True | heard of order 2
# prints: closing at 18:00
# prints: ['order', '3', 'is', 'ready'] 4
# prints: orders.packed Order(number=1)
# prints: orders.packed Order(number=1)
# prints: orders.packed Order(number=2)
