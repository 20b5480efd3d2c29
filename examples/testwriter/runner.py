"""Agent: runs generated tests. `phasebus agent run runner.py:agent`"""

import trials
from contracts import Ran, Run

from bus import Agent, Context

agent = Agent("runner", version="1.0.0")


@agent.capability("tests.run", timeout_s=60, concurrency=2)
async def run(query: Run, context: Context) -> Ran:
    await context.progress(0.1, f"running {query.written.tests} tests of {query.written.module}")
    return await trials.try_tests(query)
