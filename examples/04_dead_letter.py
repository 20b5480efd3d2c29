"""A dead letter: work that was given up is kept whole; when the cause is mended it is sent again, and is done once."""

import asyncio

import bus
from bus import Agent, Context, Reject
from bus.rules.dead import DeadLetter

agent = Agent("mailer")
addresses: dict[str, str] = {}


@agent.capability("mail.send")
async def send(query: dict[str, str], context: Context) -> str:
    """Knows nobody at first."""
    if query["to"] not in addresses:
        raise Reject(f"no address for {query['to']}")
    return f"sent to {addresses[query['to']]} at attempt {context.attempt}"


async def main() -> None:
    """Fail, mend, redrive."""
    async with bus.connect() as client, bus.serving(client, agent):
        run = (await client.send("mail.send", {"to": "ada"})).run
        print((await client.result(run, timeout_s=5)).status)
        async for found in client.dead_letters():
            assert isinstance(found.letter, DeadLetter)
            print("dead:", found.letter.problem, bytes(found.letter.payload).decode())
            addresses["ada"] = "ada@example.org"
            await client.redrive_letter(found.number, by="alice")
        state = await client.result(run, timeout_s=5)
        print(state.status, "-", client.output(state, "work"))


if __name__ == "__main__":
    asyncio.run(main())

# prints: failed
# prints: dead: no address for ada {"to":"ada"}
# prints: completed - sent to ada@example.org at attempt 2
