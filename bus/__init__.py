"""phasebus: agents register capabilities and exchange work over NATS JetStream; everything is in one log.

An author needs `Agent`, `Context` and `Reject`; a caller needs `connect`; a planner `Plan`, `Phase` and `ref`.
"""

from bus.agent import Agent
from bus.breaker import Breaker
from bus.client import Client, Receipt
from bus.connecting import connect
from bus.context import Context
from bus.diagnosis import Reject
from bus.errors import (
    Archived,
    ArchiveDamaged,
    BudgetSpent,
    BusError,
    CircuitOpen,
    LimitReached,
    MalformedMessage,
    Misconfigured,
    NoLiveAgent,
    NotFound,
    PayloadLost,
    PlanError,
    Refused,
    ScheduleError,
    SettingsError,
    TimedOut,
    TooLarge,
    Unavailable,
    WorkFailed,
)
from bus.fallback import Fallback, NoProvider, Provider
from bus.happening import Happening
from bus.messages import message, upcaster
from bus.plan import Approval, Phase, Plan
from bus.problem import Problem
from bus.quota import Quota
from bus.references import Ref, ref
from bus.retry import Retry, RetryLater, RetryPolicy
from bus.run import RunState
from bus.selection import Selection
from bus.settings import Settings
from bus.worker import serving

__all__ = [
    "Agent",
    "Approval",
    "ArchiveDamaged",
    "Archived",
    "Breaker",
    "BudgetSpent",
    "BusError",
    "CircuitOpen",
    "Client",
    "Context",
    "Fallback",
    "Happening",
    "LimitReached",
    "MalformedMessage",
    "Misconfigured",
    "NoLiveAgent",
    "NoProvider",
    "NotFound",
    "PayloadLost",
    "Phase",
    "Plan",
    "PlanError",
    "Problem",
    "Provider",
    "Quota",
    "Receipt",
    "Ref",
    "Refused",
    "Reject",
    "Retry",
    "RetryLater",
    "RetryPolicy",
    "RunState",
    "ScheduleError",
    "Selection",
    "Settings",
    "SettingsError",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "WorkFailed",
    "connect",
    "message",
    "ref",
    "serving",
    "upcaster",
]
