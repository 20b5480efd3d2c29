"""phasebus: agents register capabilities and exchange work over NATS JetStream; everything is in one log.

An author needs `Agent`, `Context` and `Reject`; a caller needs `connect`; a planner `Plan`, `Phase` and `ref`.
"""

from bus.cache.cache import Cache
from bus.client import Client
from bus.connecting import connect
from bus.coordination.decision import Decision
from bus.coordination.election import Candidacy
from bus.coordination.held import Lease
from bus.diagnosis import Reject
from bus.errors import (
    Archived,
    ArchiveDamaged,
    BudgetSpent,
    BusError,
    CircuitOpen,
    DecisionError,
    Forbidden,
    LeaseLost,
    LimitReached,
    MalformedMessage,
    Misconfigured,
    NoLiveAgent,
    NotFound,
    OutcomeUnknown,
    PayloadLost,
    PlanError,
    Refused,
    ScheduleError,
    SettingsError,
    TimedOut,
    TooLarge,
    Unavailable,
    WarmUpFailed,
    WorkFailed,
)
from bus.format.messages import message, upcaster
from bus.guards.breaker import Breaker
from bus.guards.fallback import Fallback, NoProvider, Provider
from bus.guards.quota import Quota
from bus.handlers.agent import Agent
from bus.handlers.context import Context
from bus.handlers.llm import LLMCall
from bus.history.happening import Happening
from bus.history.selection import Selection
from bus.messages.sending import Receipt
from bus.messages.streaming import Part, Stream
from bus.messages.topics import News, Published
from bus.problem import Problem
from bus.rules import events
from bus.rules.effects import Done, NotDone
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import Ref, ref
from bus.rules.retry import Retry, RetryLater, RetryPolicy
from bus.rules.run import RunState
from bus.settings import Settings
from bus.worker.worker import serving

__all__ = [
    "Agent",
    "Approval",
    "ArchiveDamaged",
    "Archived",
    "Breaker",
    "BudgetSpent",
    "BusError",
    "Cache",
    "Candidacy",
    "CircuitOpen",
    "Client",
    "Context",
    "Decision",
    "DecisionError",
    "Done",
    "Fallback",
    "Forbidden",
    "Happening",
    "LLMCall",
    "Lease",
    "LeaseLost",
    "LimitReached",
    "MalformedMessage",
    "Misconfigured",
    "News",
    "NoLiveAgent",
    "NoProvider",
    "NotDone",
    "NotFound",
    "OutcomeUnknown",
    "Part",
    "PayloadLost",
    "Phase",
    "Plan",
    "PlanError",
    "Problem",
    "Provider",
    "Published",
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
    "Stream",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "WarmUpFailed",
    "WorkFailed",
    "connect",
    "events",
    "message",
    "ref",
    "serving",
    "upcaster",
]
