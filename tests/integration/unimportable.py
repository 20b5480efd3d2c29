"""An agent that stands here once only: another process that imports this module finds it broken."""

from __future__ import annotations

import os

from bus import Agent

if os.environ.get("IMPORTED_BEFORE") == "yes":
    raise RuntimeError("this module can't be imported twice")
agent = Agent("unimportable")


@agent.capability("pid", isolation="process")
def pid(_: object) -> int:
    return os.getpid()
