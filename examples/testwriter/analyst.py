"""Agent: measures a module. `phasebus agent run analyst.py:agent`"""

import measures
from contracts import Measure, Measured

from bus import Agent

agent = Agent("analyst", version="1.0.0")


@agent.capability("code.measure", timeout_s=30, concurrency=4)
def measure(query: Measure) -> Measured:
    return measures.measure(query)
