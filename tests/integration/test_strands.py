"""A story across runs: what a handler starts leads back to the attempt that started it."""

from __future__ import annotations

from bus import Agent, Context, Phase, Plan, connect
from bus.broker.server import Server
from bus.history.lineage import Lineage
from console.strands import descendants, line, story
from tests.harness import BOUND_S, serving


async def test_a_run_that_a_handler_began_comes_of_its_attempt_and_is_part_of_its_story(server: Server) -> None:
    agent = Agent("chain")

    @agent.capability("first")
    async def first(depth: int, context: Context) -> str:
        return (await context.client.send("second", depth)).run

    @agent.capability("second")
    def second(depth: int) -> int:
        return depth

    async with serving(server, agent), connect(server.url) as client:
        outer = (await client.start(Plan("outer", phases=[Phase("a", "first", input=1)]))).run
        state = await client.result(outer, timeout_s=BOUND_S)
        inner = client.output(state, "a", str)
        await client.result(inner, timeout_s=BOUND_S)
        lineage = Lineage(await story(client, state))
    begun = next(spot for spot, each in lineage.found.items() if each.run == inner)
    cause = lineage.cause(begun)
    assert cause is not None
    assert (lineage.found[cause].type, lineage.found[cause].run) == ("phase.started.v1", outer)
    start = min(lineage.found)
    assert lineage.causes(begun)[-1] == start
    told = [line(lineage, spot) for _, spot in descendants(lineage, start, 64)]
    assert any("run.completed" in each and inner in each for each in told)
