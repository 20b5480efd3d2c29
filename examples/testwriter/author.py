"""Agent: writes the tests of a module. `phasebus agent run author.py:agent`"""

import os

import writing
from contracts import Write, Written
from language_model import LanguageModel

from bus import Agent, Context

agent = Agent("author", version="1.0.0")
model = LanguageModel.from_environment(os.environ)


@agent.capability("tests.write", timeout_s=120, concurrency=2)
async def write(query: Write, context: Context) -> Written:
    await context.progress(0.1, f"reading {query.module.name}")
    written = await writing.write(query, model)
    await context.progress(1.0, written.skipped or f"{written.tests} tests by the {written.provider}")
    return written
