"""Agent: finds the modules of a package. `phasebus agent run scanner.py:agent`"""

import os

import discovery
from contracts import Scan, Scanned

from bus import Agent, Reject

agent = Agent("scanner", version="1.0.0")


@agent.capability("code.scan", timeout_s=60, concurrency=1)
def scan(query: Scan) -> Scanned:
    try:
        return discovery.scan(
            query,
            workdir=os.environ.get("PHASEBUS_WORKDIR", ""),
            destination=os.environ.get("PHASEBUS_REPORTS", ""),
        )
    except discovery.NothingToScan as error:
        raise Reject(str(error)) from error
