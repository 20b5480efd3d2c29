"""A quota's rules: how much of calls, tokens and cost all agents together may take, and when.

One virtual clock for the whole quota: what is taken is charged at the moment from which it may be used, and those
moments only go forward, whoever asks. So each agent learns its own moment from one guarded write, first come first
served, instead of coming back to try. In any T seconds at most `burst + rate x T` of a rate is charged, and of a budget
never more than its amount in one of its windows. Pure: times (seconds since 1970) come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from bus.errors import SettingsError

Unit = Literal["calls", "tokens", "cost"]
UNITS: tuple[Unit, ...] = ("calls", "tokens", "cost")
Amounts = Mapping[Unit, float]
"""How much of each unit; what is left out is nothing."""

LONGEST_WAIT_S = 300.0
LEND_S = 0.25
"""How long a process may use what it was lent."""

_PERIODS = {"s": 1, "min": 60, "hour": 3_600, "day": 86_400}
_LENT_SHARE = 4
_LEAST_LENT = 4.0
_MOST_LOANS = 64
_BUDGET_SHARE = 100
# Sums of floats differ by the order in which they were made.
_TINY = 1e-9


class Meter(msgspec.Struct, frozen=True):
    """One bound of a quota: `amount` of a unit per period; a budget does not refill until its window ends."""

    name: str
    unit: Unit
    amount: float
    period_s: int
    is_budget: bool
    burst: float = 1.0

    @property
    def per_s(self) -> float:
        return self.amount / self.period_s

    @property
    def loans(self) -> float:
        """How much may be lent out at once: part of the burst, since nobody sees when within a loan it is used."""
        if self.is_budget:
            return self.amount / _BUDGET_SHARE
        most = min(self.amount * self.burst / _LENT_SHARE, self.per_s * LEND_S)
        return most if most >= _LEAST_LENT else 0.0

    @property
    def most(self) -> float:
        """The most that can be taken at once."""
        return self.amount if self.is_budget else self.amount * self.burst - self.loans

    def window(self, at: float) -> float:
        """The beginning of the window that holds a moment. Windows are whole hours and days in UTC."""
        return at // self.period_s * self.period_s


class Quota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all agents together may take of a service. Raises SettingsError for what can't work.

    Per second and minute are rates: they refill all the time, and at most the share `burst` of the amount comes at
    once. Per hour and day are budgets: what is spent comes back when the hour or day (UTC) ends.
    """

    calls_per_s: float | None = None
    calls_per_min: float | None = None
    tokens_per_min: float | None = None
    calls_per_hour: float | None = None
    tokens_per_hour: float | None = None
    cost_per_hour: float | None = None
    calls_per_day: float | None = None
    tokens_per_day: float | None = None
    cost_per_day: float | None = None
    burst: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.burst <= 1:
            raise SettingsError(f"quota: burst is a share over 0, at most 1, not {self.burst}")
        meters = self.meters
        if not meters:
            raise SettingsError("quota: it bounds nothing; name one of " + ", ".join(self.__struct_fields__[:-1]))
        for meter in meters:
            if not 0 < meter.amount < math.inf:
                raise SettingsError(f"quota: {meter.name} must be over 0, not {meter.amount}")
            if meter.unit == "calls" and meter.most < 1:
                raise SettingsError(f"quota: {meter.name}={meter.amount:g} lets no call through: raise it, or burst")

    @property
    def meters(self) -> list[Meter]:
        """The bounds there are."""
        found = []
        for unit in UNITS:
            for period, period_s in _PERIODS.items():
                name = f"{unit}_per_{period}"
                amount = getattr(self, name, None)
                if amount is not None:
                    found.append(Meter(name, unit, float(amount), period_s, period_s >= _PERIODS["hour"], self.burst))
        return found

    def check(self, amounts: Amounts) -> None:
        """Raises SettingsError for what could never be taken at once."""
        for unit, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise SettingsError(f"{unit} must be 0 or more, not {amount}")
        for meter in self.meters:
            if amounts.get(meter.unit, 0) > meter.most + _TINY:
                raise SettingsError(
                    f"{amounts[meter.unit]:g} {meter.unit} at once are more than {meter.name}={meter.amount:g} lets "
                    f"through ({meter.most:g}): ask for less, or raise it"
                )


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a meter stands: what is `left`, the loans that are out (until when, how much), and of a budget its window.

    `told` is the window for which it was said that it is spent.
    """

    left: float
    window: float = 0.0
    loans: tuple[tuple[float, float], ...] = ()
    told: float = 0.0


class Standing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a quota stands: what every process shares. Nothing is charged before `at`; all hold until `held_until`."""

    quota: Quota
    at: float
    accounts: dict[str, Account]
    held_until: float = 0.0


class Want(msgspec.Struct, frozen=True):
    """Somebody wants so much, and would wait so long."""

    amounts: Amounts
    patience_s: float


class Granted(msgspec.Struct, frozen=True):
    """It may be used after `wait_s`."""

    wait_s: float


class Denied(msgspec.Struct, frozen=True):
    """Not now: after so long it may be there. `budget` names the one that does not cover it."""

    retry_after_s: float
    budget: str = ""


class Draw(msgspec.Struct, frozen=True):
    """What comes of asking: an answer to each want, and what is lent beyond it. `spent`: budgets found to be so."""

    standing: Standing
    answers: list[Granted | Denied]
    loan: Amounts
    spent: tuple[str, ...] = ()


def opened(standing: Standing | None, quota: Quota, now: float) -> Standing:
    """How it stands now under this quota: refilled, windows turned over, loans that are over forgotten."""
    if standing is None:
        return Standing(quota=quota, at=now, accounts={each.name: _full(each, now) for each in quota.meters})
    at = standing.at
    if at > max(now + 2 * LONGEST_WAIT_S, standing.held_until):
        # Nobody waits that long: whoever wrote it had a clock far ahead, and it is not to stop all others.
        at = now
    accounts = {
        meter.name: _refilled(meter, standing.accounts.get(meter.name), at, max(at, now)) for meter in quota.meters
    }
    return Standing(quota=quota, at=max(at, now), accounts=accounts, held_until=standing.held_until)


def draw(
    standing: Standing | None,
    quota: Quota,
    wants: Sequence[Want],
    *,
    now: float,
    ahead: Amounts | None = None,
    used: Mapping[str, float] | None = None,
) -> Draw:
    """Charge `wants` in their order, each at the first moment at which all meters cover it.

    `ahead` is what the caller will probably want next: as much of it as can be spared is lent. `used` is, by
    meter, what was used beyond what had been charged, or less than that (negative): it is settled first.
    """
    standing = opened(standing, quota, now)
    meters = quota.meters
    standing = replace(standing, accounts=_settled(meters, standing.accounts, used or {}))
    answers: list[Granted | Denied] = []
    spent: set[str] = set()
    for want in wants:
        standing, answer = _charge(standing, meters, want, now)
        answers.append(answer)
        if isinstance(answer, Denied) and answer.budget:
            spent.add(answer.budget)
    loan: Amounts = {}
    if ahead and standing.at <= now and all(isinstance(answer, Granted) for answer in answers):
        standing, loan = _lend(standing, meters, ahead, now)
    accounts = dict(standing.accounts)
    news = tuple(sorted(name for name in spent if accounts[name].told != accounts[name].window))
    for name in news:
        accounts[name] = replace(accounts[name], told=accounts[name].window)
    return Draw(replace(standing, accounts=accounts), answers, loan, news)


def hold(standing: Standing | None, quota: Quota, until: float, now: float) -> Standing:
    """Nobody takes anything until then. Rates begin empty after it: those who waited come one by one."""
    standing = opened(standing, quota, now)
    if until <= standing.held_until:
        return standing
    empty = {
        meter.name: replace(standing.accounts[meter.name], left=min(standing.accounts[meter.name].left, 0.0), loans=())
        for meter in quota.meters
        if not meter.is_budget
    }
    accounts = standing.accounts | empty
    return replace(standing, at=max(standing.at, until), held_until=until, accounts=accounts)


def _full(meter: Meter, at: float) -> Account:
    return Account(meter.most, meter.window(at) if meter.is_budget else 0.0)


def _refilled(meter: Meter, account: Account | None, since: float, now: float) -> Account:
    if account is None:
        return _full(meter, now)
    if meter.is_budget:
        window = meter.window(now)
        return account if window <= account.window else _full(meter, now)
    left = min(account.left + (now - since) * meter.per_s, meter.most)
    loans = tuple(loan for loan in account.loans if loan[0] > now)
    return replace(account, left=left, loans=loans)


def _settled(meters: Sequence[Meter], accounts: dict[str, Account], used: Mapping[str, float]) -> dict[str, Account]:
    return {
        meter.name: replace(
            accounts[meter.name], left=min(accounts[meter.name].left - used.get(meter.name, 0), meter.most)
        )
        for meter in meters
    }


def _charge(standing: Standing, meters: Sequence[Meter], want: Want, now: float) -> tuple[Standing, Granted | Denied]:
    ready = standing.at
    for meter in meters:
        amount, left = want.amounts.get(meter.unit, 0), standing.accounts[meter.name].left
        if amount <= 0 or amount <= left + _TINY:
            continue
        if meter.is_budget:
            ends = standing.accounts[meter.name].window + meter.period_s
            return standing, Denied(max(ends - now, 0.0), meter.name)
        ready = max(ready, standing.at + (amount - left) / meter.per_s)
    if ready - now > want.patience_s:
        return standing, Denied(ready - now)
    accounts = {}
    for meter in meters:
        account = _refilled(meter, standing.accounts[meter.name], standing.at, ready)
        accounts[meter.name] = replace(account, left=account.left - want.amounts.get(meter.unit, 0))
    return replace(standing, at=ready, accounts=accounts), Granted(max(ready - now, 0.0))


def _lend(standing: Standing, meters: Sequence[Meter], ahead: Amounts, now: float) -> tuple[Standing, Amounts]:
    share = 1.0
    for meter in meters:
        account = standing.accounts[meter.name]
        wanted = ahead.get(meter.unit, 0)
        if wanted <= 0:
            continue
        if len(account.loans) >= _MOST_LOANS:
            return standing, {}
        out = 0.0 if meter.is_budget else sum(amount for _, amount in account.loans)
        # Half of what is left stays for others.
        share = min(share, max(min(meter.loans - out, account.left / 2), 0.0) / wanted)
    loan = {unit: ahead[unit] * share for unit in ahead}
    if "calls" in loan:
        whole = math.floor(loan["calls"] + _TINY)
        share *= whole / loan["calls"] if loan["calls"] > 0 else 0.0
        loan = {unit: ahead[unit] * share for unit in ahead}
    if share <= 0:
        return standing, {}
    accounts = dict(standing.accounts)
    for meter in meters:
        account, amount = accounts[meter.name], loan.get(meter.unit, 0)
        if amount > 0:
            loans = account.loans if meter.is_budget else (*account.loans, (now + LEND_S, amount))
            accounts[meter.name] = replace(account, left=account.left - amount, loans=loans)
    return replace(standing, accounts=accounts), loan
