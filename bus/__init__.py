"""phasebus: agents register capabilities and exchange work over NATS JetStream; everything is in one log.

An author needs `Agent`, `Context` and `Reject`; a caller needs `connect`; a planner `Plan`, `Phase` and `ref`.
"""

from bus.agent import Agent
from bus.asking import Receipt
from bus.breaker import Breaker
from bus.cache import Cache
from bus.client import Client
from bus.connecting import connect
from bus.context import Context
from bus.decision import Decision
from bus.diagnosis import Reject
from bus.election import Candidacy
from bus.errors import (
    Archived,
    ArchiveDamaged,
    BudgetSpent,
    BusError,
    CircuitOpen,
    DecisionError,
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
from bus.fallback import Fallback, NoProvider, Provider
from bus.happening import Happening
from bus.held import Lease
from bus.llm import LLMCall
from bus.messages import message, upcaster
from bus.notebook import Done, NotDone
from bus.plan import Approval, Phase, Plan
from bus.problem import Problem
from bus.quota import Quota
from bus.references import Ref, ref
from bus.retry import Retry, RetryLater, RetryPolicy
from bus.run import RunState
from bus.selection import Selection
from bus.settings import Settings
from bus.streaming import Part, Stream
from bus.topics import News, Published
from bus.worker import serving

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
    "message",
    "ref",
    "serving",
    "upcaster",
]
