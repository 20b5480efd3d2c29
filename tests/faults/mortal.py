"""An agent whose work ends in every way, as its input says; for tests that count what becomes of it."""

import asyncio
import os
import signal

from bus import Agent, Context, Reject

agent = Agent("mortal")


@agent.capability("mortal.do", concurrency=4)
async def do(query: dict[str, str], context: Context) -> str:
    """`ok`, `slow`, `flaky` (fails the first time), `refused`, `broken`, or `poison`, which takes the process along."""
    match query["how"]:
        case "slow":
            await asyncio.sleep(0.3)
        case "flaky" if context.attempt == 1:
            raise ConnectionResetError("the line is down")
        case "refused":
            raise Reject("no, whoever asks")
        case "broken":
            raise ValueError("no such thing") from KeyError("sku")
        case "poison":
            os.kill(os.getpid(), signal.SIGKILL)
    return query["how"]


def again(query: dict[str, str]) -> dict[str, str]:
    """A transform that mends everything."""
    return {"how": "ok", "was": query["how"]}


if __name__ == "__main__":
    agent.run()
