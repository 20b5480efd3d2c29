"""Agent: drafts the report of a run, and publishes it once approved. `phasebus agent run reporter.py:agent`"""

import drafts
from contracts import Draft, Drafted, Publish, Published

from bus import Agent, Reject

agent = Agent("reporter", version="1.0.0")


@agent.capability("report.draft", timeout_s=30)
def draft(query: Draft) -> Drafted:
    return drafts.draft(query)


@agent.capability("report.publish", timeout_s=30)
def publish(query: Publish) -> Published:
    try:
        return drafts.publish(query)
    except FileNotFoundError as error:
        raise Reject(f"a draft is gone: {error.filename}") from error
