"""Who is there for work: the capabilities that no live agent offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bus.client import Client
from console.printer import Printer


async def unserved(client: Client, capabilities: Iterable[str]) -> list[str]:
    """Those of them that nobody offers at this moment, each once."""
    wanted = list(dict.fromkeys(capabilities))
    timeout_s = client.settings.request_timeout_s
    offered = await asyncio.gather(*(client.signposts.is_offered(each, timeout_s) for each in wanted))
    return [each for each, is_there in zip(wanted, offered, strict=True) if not is_there]


async def say_unserved(client: Client, printer: Printer, capabilities: Iterable[str]) -> None:
    """Warn whoever has just handed out work for these."""
    for each in await unserved(client, capabilities):
        printer.hint(lonely(each))


def lonely(capability: str) -> str:
    """The warning about a capability that nobody offers."""
    return f"no live agent for {capability}: the run waits for one"
