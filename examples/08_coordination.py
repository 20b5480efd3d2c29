"""Coordination: a lock whose token the log itself checks, and a decision that agents vote on."""

import asyncio
from uuid import uuid4

import bus
from bus import Client, LeaseLost
from bus.clock import utc_now
from bus.format.envelope import envelope


async def main() -> None:
    """Two processes would do; two tasks show the same."""
    async with bus.connect() as client:
        done: list[str] = []
        await asyncio.gather(deploy(client, "blue", done), deploy(client, "green", done))
        print("deployed one after the other:", *sorted(done))
        await overtaken(client)
        await decide(client)


async def deploy(client: Client, colour: str, done: list[str]) -> None:
    """One at a time."""
    async with client.lock("deploy", timeout_s=10):
        done.append(colour)


async def overtaken(client: Client) -> None:
    """Somebody takes the lock away: the block is cancelled, and what it still sends is refused."""
    try:
        async with client.lock("deploy") as lease:
            await note(client, lease, "begun")
            await client.break_lease("lock", "deploy", by="alice")
            await asyncio.sleep(5)
            print("never printed")
    except LeaseLost as lost:
        print(lost.what, "lost:", lost.reason)
    try:
        await note(client, lease, "done")
    except LeaseLost:
        print("the old token is refused")


async def note(client: Client, lease: bus.Lease, text: str) -> None:
    """The server stores it only while the lease's token is the newest of the lock."""
    message = envelope("deploy.note.v1", text, id=uuid4().hex, source="/deployer", time=utc_now())
    await client.log.append("bus.topic.deploys", message, fence=lease)


async def decide(client: Client) -> None:
    """Each voter has its weight; it is decided as soon as no vote to come could change it."""
    voters = {"alice": 2, "bob": 1, "carol": 1}
    asked = await client.propose("ship it?", options=["yes", "no"], voters=voters, timeout_s=60)
    await client.vote(asked.id, "no", by="bob", comment="tests are red")
    await client.vote(asked.id, "yes", by="carol", comment="they are green again")
    await client.vote(asked.id, "yes", by="alice")
    decided = await client.decided(asked.id, timeout_s=5)
    print("decided:", decided.option, decided.tally)


if __name__ == "__main__":
    asyncio.run(main())

# prints: deployed one after the other: blue green
# prints: lock 'deploy' lost: ended by alice
# prints: the old token is refused
# prints: decided: yes {'yes': 3, 'no': 1}
