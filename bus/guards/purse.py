"""A purse: what one process has of a quota: what it was lent, what it owes, and what it will probably want next.

What a rate has lent and nobody has used is not given back but lost: given back again and again it would be saved up,
and come on top of the burst. Of a budget nothing is lost that way. Times are seconds: `now_s` is monotonic, `at` is the
wall clock, which says which window of a budget something belongs to.
"""

from __future__ import annotations

from bus.guards.quota import LEND_S, Amounts, Quota, Unit

_REMEMBERED_S = 2 * LEND_S


class Purse:
    """What one process has of one quota."""

    def __init__(self, quota: Quota) -> None:
        self._meters = quota.meters
        self._lent: dict[Unit, float] = {}
        self._lent_until_s = 0.0
        self._lent_at = 0.0
        self._owed: dict[tuple[str, float], float] = {}
        self._used: dict[Unit, float] = {}
        self._used_since_s = -_REMEMBERED_S * 2

    @property
    def owes(self) -> bool:
        return bool(self._owed)

    def note(self, amounts: Amounts, now_s: float) -> None:
        """So much is wanted now: the like of it will probably be wanted next."""
        age_s = now_s - self._used_since_s
        if age_s > _REMEMBERED_S:
            is_recent = age_s < 2 * _REMEMBERED_S
            self._used = {unit: amount / 2 for unit, amount in self._used.items()} if is_recent else {}
            self._used_since_s = now_s
        for unit, amount in amounts.items():
            self._used[unit] = self._used.get(unit, 0) + amount

    def ahead(self, now_s: float) -> Amounts:
        """What to borrow: about as much as was wanted in as long as a loan lasts."""
        if now_s - self._used_since_s > 2 * _REMEMBERED_S:
            return {}
        return {unit: amount / 2 for unit, amount in self._used.items()}

    def lend(self, loan: Amounts, until_s: float, at: float) -> None:
        """Put a loan in, which was given at `at`. What was left of the one before has been `put_back`."""
        self._lent, self._lent_until_s, self._lent_at = dict(loan), until_s, at

    def pay(self, amounts: Amounts, now_s: float) -> bool:
        """Pay from what was lent, if that covers it."""
        if self._lent_until_s <= now_s or any(self._lent.get(unit, 0) < amounts[unit] for unit in amounts):
            return False
        for unit, amount in amounts.items():
            self._lent[unit] -= amount
        return True

    def put_back(self) -> None:
        """Use the loan no more."""
        left = {unit: -amount for unit, amount in self._lent.items() if amount}
        self._lent = {}
        if left:
            self.owe(left, self._lent_at, budgets_only=True)

    def owe(self, more: Amounts, at: float, *, budgets_only: bool = False) -> None:
        """So much more was used than was charged at a moment, or less (negative)."""
        for meter in self._meters:
            amount = more.get(meter.unit, 0)
            if amount and (meter.is_budget or not budgets_only):
                key = (meter.name, meter.window(at))
                self._owed[key] = self._owed.get(key, 0.0) + amount

    def empty(self) -> dict[tuple[str, float], float]:
        """All that is owed, by meter and window; owed no more. `refill` puts it in again."""
        owed, self._owed = self._owed, {}
        return owed

    def refill(self, owed: dict[tuple[str, float], float]) -> None:
        for key, amount in owed.items():
            self._owed[key] = self._owed.get(key, 0.0) + amount

    def due(self, owed: dict[tuple[str, float], float], now: float) -> dict[str, float]:
        """By meter. In a window of a budget that has ended, nothing is owed any more."""
        due: dict[str, float] = {}
        for meter in self._meters:
            for (name, window), amount in owed.items():
                if name == meter.name and (not meter.is_budget or window == meter.window(now)):
                    due[name] = due.get(name, 0.0) + amount
        return due
