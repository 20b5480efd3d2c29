"""AutoGen: agents in gRPC runtimes that meet at a host. Nothing is stored.

`python -m benchmarks.peers.with_autogen host|worker|ask|hold FOLDER`
"""

# Its handlers' types are read when the class is made: no `from __future__ import annotations`.
import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from autogen_core import (  # type: ignore[import-not-found]
    AgentId,
    MessageContext,
    RoutedAgent,
    message_handler,
    try_get_known_serializers_for_type,
)
from autogen_ext.runtimes.grpc import (  # type: ignore[import-not-found]
    GrpcWorkerAgentRuntime,
    GrpcWorkerAgentRuntimeHost,
)

from benchmarks.peers import measuring

_RETRY_S = 0.2


@dataclass
class Work:
    value: int


@dataclass
class Hold:
    folder: str


class Peer(RoutedAgent):  # type: ignore[misc]
    @message_handler  # type: ignore[untyped-decorator]
    async def work(self, message: Work, ctx: MessageContext) -> Work:
        return message

    @message_handler  # type: ignore[untyped-decorator]
    async def hold(self, message: Hold, ctx: MessageContext) -> Work:
        await measuring.hold(message.folder)
        return Work(1)


async def host() -> None:
    runtime = GrpcWorkerAgentRuntimeHost(measuring.URL)
    runtime.start()
    await runtime.stop_when_signal()


async def _runtime() -> Any:
    runtime = GrpcWorkerAgentRuntime(measuring.URL)
    for each in (Work, Hold):
        runtime.add_message_serializer(try_get_known_serializers_for_type(each))
    await runtime.start()
    return runtime


async def worker() -> None:
    runtime = await _runtime()
    await Peer.register(runtime, "peer", lambda: Peer("peer"))
    await runtime.stop_when_signal()


async def ask() -> None:
    runtime, peer = await _runtime(), AgentId("peer", "default")
    while True:
        try:
            await asyncio.wait_for(runtime.send_message(Work(1), peer), 1)
            break
        except Exception:  # noqa: BLE001 - nobody is there yet, which it says in several ways
            await asyncio.sleep(_RETRY_S)
    await measuring.measure(lambda: runtime.send_message(Work(1), peer))
    await runtime.stop()


async def send(folder: str) -> None:
    runtime = await _runtime()
    await runtime.send_message(Hold(folder), AgentId("peer", "default"))
    await runtime.stop()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    roles: measuring.Roles = {"host": host, "worker": worker, "ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))
