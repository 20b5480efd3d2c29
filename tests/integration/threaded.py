"""An agent whose module starts a thread when it is imported: its process can't be copied safely."""

from __future__ import annotations

import os
import threading

from bus import Agent

threading.Thread(target=threading.Event().wait, daemon=True).start()
agent = Agent("threaded")


@agent.capability("pid", isolation="process", concurrency=4)
def pid(_: object) -> int:
    return os.getpid()
