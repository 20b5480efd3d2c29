"""Leadership: a lease in a KV bucket that one process holds at a time.

Holding it is never proof that an act is allowed: what a leader does is guarded by the version of the run it does it
to, so a leader that has lost its lease without knowing can't do harm.
"""

from __future__ import annotations

import msgspec

from bus.client import Client
from bus.connection import Message
from bus.errors import BusError, Misconfigured, NoResponders

_LEADER = "supervisor"
_FLOOR = "floor"
_AGENTS_FLOOR = "floor-agents"


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    error: dict[str, object] | None = None


_ack = msgspec.json.Decoder(_Ack)


class Leadership:
    """The lease of one namespace's supervisor, as `holder` sees it. `revision` is 0 while somebody else has it."""

    def __init__(self, client: Client, holder: str) -> None:
        self._client = client
        self._holder = holder
        self._bucket = client.subjects.leases_bucket
        # Whole seconds, as the server counts them.
        self.ttl_s = max(round(client.settings.lease_s), 1)
        self.revision = 0

    async def set_up(self) -> None:
        """Create the bucket if it is not there. Raises Misconfigured, Unavailable."""
        config = {
            "name": f"KV_{self._bucket}",
            "subjects": [f"$KV.{self._bucket}.>"],
            "max_msgs_per_subject": 1,
            "storage": "file",
            "num_replicas": self._client.settings.replicas,
            "discard": "new",
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "allow_msg_ttl": True,
        }
        answer = await self._ask(f"$JS.API.STREAM.CREATE.KV_{self._bucket}", msgspec.json.encode(config))
        error = _ack.decode(answer.data).error
        if error is not None:
            raise Misconfigured(f"bucket {self._bucket!r}: {error.get('description')}")

    async def claim(self) -> bool:
        """Take the lease, or renew it, for `ttl_s` from now. False: somebody else has it."""
        try:
            answer = await self._put(_LEADER, self._holder.encode(), expected=self.revision, ttl_s=self.ttl_s)
        except BusError:
            self.revision = 0
            raise
        self.revision = answer.seq if answer.error is None else 0
        return self.revision > 0

    async def leader(self) -> str | None:
        """Who has the lease now, if anybody has. Raises Unavailable."""
        request = msgspec.json.encode({"last_by_subj": f"$KV.{self._bucket}.{_LEADER}"})
        try:
            answer = await self._ask(f"$JS.API.DIRECT.GET.KV_{self._bucket}", request)
        except NoResponders:
            return None  # nobody has ever led here
        return answer.data.decode(errors="replace") if not answer.status and answer.data else None

    async def release(self) -> None:
        """Let the next in line take over at once."""
        if self.revision:
            body = msgspec.json.encode({"seq": self.revision, "no_erase": True})
            self.revision = 0
            await self._ask(f"$JS.API.STREAM.MSG.DELETE.KV_{self._bucket}", body)

    async def floors(self) -> tuple[int, int]:
        """Positions up to which every run, and every instance of an agent, had ended: a new leader need not read what
        is older."""
        return await self._floor(_FLOOR), await self._floor(_AGENTS_FLOOR)

    async def raise_floors(self, runs: int, agents: int) -> None:
        for key, position in ((_FLOOR, runs), (_AGENTS_FLOOR, agents)):
            await self._put(key, str(position).encode(), expected=None, ttl_s=None)

    async def _floor(self, key: str) -> int:
        request = msgspec.json.encode({"last_by_subj": f"$KV.{self._bucket}.{key}"})
        answer = await self._ask(f"$JS.API.DIRECT.GET.KV_{self._bucket}", request)
        try:
            return int(answer.data) if not answer.status else 0
        except ValueError:
            return 0

    async def _put(self, key: str, value: bytes, *, expected: int | None, ttl_s: int | None) -> _Ack:
        headers: dict[str, str] = {}
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s}s"
        return _ack.decode((await self._ask(f"$KV.{self._bucket}.{key}", value, headers)).data)

    async def _ask(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> Message:
        timeout_s = min(self._client.settings.request_timeout_s, self.ttl_s / 2)
        return await self._client.connection.request(subject, data, headers=headers, timeout_s=timeout_s)
