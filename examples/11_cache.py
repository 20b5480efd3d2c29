"""A cache: what was computed before is not computed again, and why something was computed is said."""

import asyncio

import bus
from bus import Agent, Cache, Phase, Plan, RunState, ref

agent = Agent("words", version="1.0")


@agent.capability("words.count", concurrency=4, cache=Cache(ttl_s=7 * 86_400))
def count(query: dict[str, str]) -> int:
    """Its answer depends on its input alone, and its author says so."""
    return len(query["text"].split())


plan = Plan("count", phases=[Phase("count", "words.count", each=ref("input"))])
PAGES = [{"page": "one", "text": "in the beginning"}, {"page": "two", "text": "the end"}]


def told(state: RunState) -> None:
    """For each page its words, and where the number comes from."""
    for page, item in zip(state.input.value, state.phases["count"].items, strict=True):
        last = item.attempts[-1]
        source = f"cached from {last.cached.run}" if last.cached else f"ran because {last.because}"
        print(page["page"], item.output.value if item.output else None, source)


async def main() -> None:
    """The same twice, then with one page changed, then all of it anew because somebody wants that."""
    async with bus.connect() as client, bus.serving(client, agent):
        changed = [PAGES[0], {"page": "two", "text": "the very end"}]
        for run, pages, force in (("a", PAGES, False), ("b", PAGES, False), ("c", changed, False), ("d", PAGES, True)):
            await client.start(plan, pages, run=run, force=force)
            told(await client.result(run, timeout_s=30))


if __name__ == "__main__":
    asyncio.run(main())

# prints: one 3 ran because it is the first time
# prints: two 2 ran because it is the first time
# prints: one 3 cached from a
# prints: two 2 cached from a
# prints: one 3 cached from a
# prints: two 3 ran because input.text changed
# prints: one 3 ran because it was forced
# prints: two 2 ran because it was forced
