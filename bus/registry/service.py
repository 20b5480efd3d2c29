"""An instance as a service of the NATS service protocol, so that any NATS tool sees it: `nats service ls, info, stats`.

Its endpoints are its capabilities. They are not asked there: work goes through the log, and the subject is where that
waits to be taken. Source: ADR-32.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from bus.broker.connection import Connection, Message
from bus.format.subjects import Subjects, capability_token
from bus.problem import Problem
from bus.registry.card import Card

_TYPE = "io.nats.micro.v1.{}_response"
_SEMVER = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?([-+].*)?")


class Tally(msgspec.Struct):
    """What one instance has done for one capability since it started."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    spent_ns: int = 0

    def count(self, took_s: float, problem: Problem | None) -> None:
        self.requests += 1
        self.spent_ns += int(took_s * 1e9)
        if problem is not None:
            self.errors += 1
            self.last_error = str(problem)


class Service:
    """One instance's answers to the protocol's three questions."""

    def __init__(self, connection: Connection, subjects: Subjects, card: Card, tallies: Mapping[str, Tally]) -> None:
        self._connection = connection
        self._subjects = subjects
        self._card = card
        self._tallies = tallies
        self._started = datetime.fromtimestamp(time.time(), UTC)

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Answer while the block runs."""
        verbs: dict[str, Callable[[], dict[str, Any]]] = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        async with AsyncExitStack() as stack:
            for verb, answer in verbs.items():
                for whom in ("", f".{self._card.agent}", f".{self._card.agent}.{self._card.instance}"):
                    told = self._connection.subscribe(f"$SRV.{verb}{whom}", self._answering(answer))
                    stack.callback(told.unsubscribe)
            yield

    def _answering(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def take(message: Message) -> None:
            if message.reply and self._connection.is_connected:
                self._connection.publish(message.reply, msgspec.json.encode(answer()))

        return take

    def _ping(self) -> dict[str, Any]:
        return self._about("ping")

    def _info(self) -> dict[str, Any]:
        endpoints = [self._endpoint(name) | {"metadata": self._metadata(name)} for name in self._card.capabilities]
        return self._about("info") | {"description": f"phasebus agent {self._card.agent}", "endpoints": endpoints}

    def _stats(self) -> dict[str, Any]:
        counted = [self._endpoint(name) | _counted(self._tallies[name]) for name in self._card.capabilities]
        return self._about("stats") | {"started": self._started, "endpoints": counted}

    def _about(self, verb: str) -> dict[str, Any]:
        card = self._card
        metadata = {"version": card.version, "host": card.host, "pid": str(card.pid), "tags": ",".join(card.tags)}
        return {
            "type": _TYPE.format(verb),
            "name": card.agent,
            "id": card.instance,
            "version": semantic(card.version),
            "metadata": {key: value for key, value in metadata.items() if value},
        }

    def _endpoint(self, capability: str) -> dict[str, Any]:
        return {
            "name": capability.replace(".", "_"),
            "subject": self._subjects.work_for(capability),
            "queue_group": capability_token(capability),
        }

    def _metadata(self, capability: str) -> dict[str, str]:
        """The protocol knows text only: a schema is its JSON."""
        offering = self._card.capabilities[capability]
        schemas = {"takes": offering.takes, "gives": offering.gives}
        return {
            "capability": capability,
            "concurrency": str(offering.concurrency),
            **({"tags": ",".join(offering.tags)} if offering.tags else {}),
            **{side: bytes(schema).decode() for side, schema in schemas.items() if schema is not msgspec.UNSET},
        }


def semantic(version: str) -> str:
    """The version as the protocol wants it, with three numbers: '1' is 1.0.0, and what has none ('dev') 0.0.0+dev."""
    found = _SEMVER.fullmatch(version)
    if found is None:
        return "0.0.0+" + re.sub(r"[^0-9A-Za-z.-]", "-", version)
    numbers = [str(int(each or 0)) for each in found.groups()[:3]]
    return ".".join(numbers) + (found[4] or "")


def _counted(tally: Tally) -> dict[str, Any]:
    return {
        "num_requests": tally.requests,
        "num_errors": tally.errors,
        "last_error": tally.last_error,
        "processing_time": tally.spent_ns,
        "average_processing_time": tally.spent_ns // max(tally.requests, 1),
    }
