"""Leadership: the supervisor's lease, of the same kind as everybody's, that one process holds at a time.

Holding it is never proof that an act is allowed: what a leader does is guarded by the version of the run it does it
to, so a leader that has lost its lease without knowing can't do harm.
"""

from __future__ import annotations

from bus.client import Client
from bus.coordination.held import Lease
from bus.coordination.lease import Place
from bus.errors import LeaseLost
from bus.log.bucket import Bucket

PLACE = Place("leader", "supervisor")
_FLOOR = "floor"
_AGENTS_FLOOR = "floor-agents"


class Leadership:
    """The lease of one namespace's supervisor, as `holder` sees it."""

    def __init__(self, client: Client, holder: str) -> None:
        self._leases = client.leases
        self._holder = holder
        self._lease: Lease | None = None
        self.ttl_s = client.leases.ttl_s(None)

    @property
    def bucket(self) -> Bucket:
        """Where a leader keeps what the next one need not find out again."""
        return self._leases.bucket

    @property
    def token(self) -> int:
        """0 while somebody else has it."""
        return self._lease.token if self._lease is not None else 0

    async def claim(self) -> bool:
        """Take the lease, or renew it, for `ttl_s` from now. False: somebody else has it. Raises Unavailable."""
        if self._lease is None:
            self._lease = await self._leases.take(PLACE, self._holder, self.ttl_s)
            return self._lease is not None
        try:
            await self._leases.renew(self._lease)
        except LeaseLost:
            self._lease = None
        return self._lease is not None

    async def leader(self) -> str | None:
        """Who has the lease now, if anybody has. Raises Unavailable."""
        return await self._leases.holder_of(PLACE)

    async def release(self) -> None:
        """Let the next in line take over at once. Best effort: it ends by itself."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await self._leases.let_go(lease)

    async def floors(self) -> tuple[int, int]:
        """Positions up to which every run, and every instance of an agent, had ended: a new leader need not read what
        is older."""
        return await self._floor(_FLOOR), await self._floor(_AGENTS_FLOOR)

    async def raise_floors(self, runs: int, agents: int) -> None:
        for key, position in ((_FLOOR, runs), (_AGENTS_FLOOR, agents)):
            await self.bucket.put(key, str(position).encode())

    async def _floor(self, key: str) -> int:
        entry = await self.bucket.get(key)
        return int(entry.value) if entry is not None and entry.value.isdigit() else 0
