"""Memory: what an agent knows is an aggregate, its events stored beside its messages and tied to them by run id."""

import asyncio
import os
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Aggregate, event

import bus
from bus import Agent, Context
from bus.broker.server import embedded


class Memory(Aggregate):
    """What is known of one subject. Each event says in which run it was learned."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.facts: list[str] = []

    @staticmethod
    def create_id(subject: str) -> UUID:
        return uuid5(NAMESPACE_URL, f"/memory/{subject}")

    @event("Learned")
    def learn(self, fact: str, run: str) -> None:
        """Facts are added, never changed."""
        self.facts.append(fact)


class Memories(Application[UUID]):
    """Every process that makes one sees the same memories."""

    def of(self, subject: str) -> Memory:
        """What there is, or a new one."""
        try:
            memory: Memory = self.repository.get(Memory.create_id(subject))
        except AggregateNotFoundError:
            memory = Memory(subject)
        return memory


agent = Agent("librarian")


@agent.capability("memory.learn")
def learn(query: dict[str, str], context: Context) -> int:
    """A plain function runs in a thread, where waiting for the store holds nobody up."""
    with Memories() as memories:
        memory = memories.of(query["subject"])
        if query["fact"] not in memory.facts:  # a second attempt has nothing to add
            memory.learn(query["fact"], context.run)
            memories.save(memory)
        return memory.version


async def main() -> None:
    """Teach it twice, then look at what it knows and where from."""
    async with embedded() as server:
        os.environ.setdefault("NATS_URL", server.url)
        os.environ["PERSISTENCE_MODULE"] = "bus.eventsourcing"
        async with bus.connect() as client, bus.serving(client, agent):
            for fact in ("sleeps all day", "hunts at night"):
                taught = {"subject": "cat", "fact": fact}
                print("version", await client.ask("memory.learn", taught, int, timeout_s=10))
            await asyncio.to_thread(tell)


def tell() -> None:
    """Any process may read it, here without the agent."""
    with Memories() as memories:
        cat = memories.of("cat")
        print(cat.subject, cat.facts)
        for learned in memories.events.get(cat.id, gt=1):
            print(learned.originator_version, learned.fact, "- in run", learned.run.rpartition("-")[0])


if __name__ == "__main__":
    asyncio.run(main())

# prints: version 2
# prints: version 3
# prints: cat ['sleeps all day', 'hunts at night']
# prints: 2 sleeps all day - in run task
# prints: 3 hunts at night - in run task
