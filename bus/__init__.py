"""phasebus: agents register capabilities and exchange work over NATS JetStream; everything is in one log.

An author needs `Agent`, `Context` and `Reject`; a caller needs `connect`; a planner `Plan`, `Phase` and `ref`.
"""

from bus.agent import Agent
from bus.asking import Receipt, WorkFailed
from bus.client import Client
from bus.connecting import connect
from bus.context import Context
from bus.diagnosis import Reject
from bus.errors import (
    Archived,
    ArchiveDamaged,
    BusError,
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
)
from bus.happening import Happening
from bus.messages import message, upcaster
from bus.plan import Approval, Phase, Plan
from bus.problem import Problem
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
    "BusError",
    "Client",
    "Context",
    "Happening",
    "MalformedMessage",
    "Misconfigured",
    "News",
    "NoLiveAgent",
    "NotFound",
    "Part",
    "PayloadLost",
    "Phase",
    "Plan",
    "PlanError",
    "Problem",
    "Published",
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
    "WorkFailed",
    "connect",
    "message",
    "ref",
    "serving",
    "upcaster",
]
