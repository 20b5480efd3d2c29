"""A decision among agents: somebody proposes, voters vote, and the outcome follows from the votes and the time. Pure.

`decide` and `evolve` as for runs. The outcome is a function of what is in the log and of now, so whoever looks finds
the same one; that it has been reached is appended by the first who notices, and is final from then on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Literal

import msgspec

from bus.errors import DecisionError, MalformedMessage, Refused
from bus.format.envelope import Envelope
from bus.format.schemas import Catalogue
from bus.rules.events import Instant

PROPOSED, VOTED, DECIDED = "decision.proposed.v1", "decision.voted.v1", "decision.decided.v1"

REJECT, FIRST = "reject", "first"
MOST_VOTERS, MOST_OPTIONS, LONGEST_S = 1_000, 100, 31_536_000
_CHARACTERS = 200

Why = Literal["votes", "tie", "no_quorum"]
"""Most votes; as many votes for several, so the tie rule spoke; too few had voted when the time was over."""


class Proposed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody asks. `voters` have weights; `quorum` is the share of all weight that has to vote; `tie` is the rule for
    equal votes: `reject`, `first` (the one named first in `options`), or an option."""

    by: str
    question: str
    options: tuple[str, ...]
    voters: dict[str, int]
    quorum: float
    tie: str
    deadline_at: Instant


class Voted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A voter's word; it has only one."""

    by: str
    option: str
    comment: str = ""


class Decided(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome is final. Without an option the proposal is rejected. `tally` is the weight of each option."""

    why: Why
    tally: dict[str, int]
    option: str | None = None


Event = Proposed | Voted | Decided
EVENTS = Catalogue()
EVENTS.add(PROPOSED, Proposed)
EVENTS.add(VOTED, Voted)
EVENTS.add(DECIDED, Decided)
_NAMES = {Proposed: PROPOSED, Voted: VOTED, Decided: DECIDED}


class Propose(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants to ask."""

    by: str
    question: str
    options: Sequence[str]
    voters: Mapping[str, int]
    quorum: float
    tie: str
    timeout_s: float


class Vote(msgspec.Struct, frozen=True):
    """Somebody wants to vote."""

    by: str
    option: str
    comment: str = ""


class Settle(msgspec.Struct, frozen=True):
    """Somebody has noticed that it may be decided by now."""


Command = Propose | Vote | Settle


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as of a position of the log. `outcome` is there when it is final."""

    id: str
    proposal: Proposed
    proposed_at: datetime
    position: int
    votes: Mapping[str, Voted] = msgspec.field(default_factory=dict)
    outcome: Decided | None = None
    decided_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.outcome is None

    @property
    def option(self) -> str | None:
        """What was decided; None: nothing yet, or the proposal was rejected."""
        return self.outcome.option if self.outcome is not None else None

    @property
    def missing(self) -> Sequence[str]:
        """Voters who have not voted."""
        return [voter for voter in self.proposal.voters if voter not in self.votes]

    @property
    def tally(self) -> dict[str, int]:
        """The weight of the votes for each option, in the order of the options."""
        weights = dict.fromkeys(self.proposal.options, 0)
        for voter, vote in self.votes.items():
            weights[vote.option] += self.proposal.voters[voter]
        return weights


def type_of(event: Event) -> str:
    """The wire type of an event."""
    return _NAMES[type(event)]


def read(message: Envelope) -> Event:
    """The event in a message. Raises MalformedMessage."""
    if message.type not in EVENTS.types:
        raise MalformedMessage(f"{message.type!r} is not an event of a decision")
    event: Event = EVENTS.read(message.type, message.data)
    return event


def decide(state: Decision | None, command: Command, *, id: str, now: datetime) -> Event | None:
    """What happens because of the command; None: nothing, it is so already. Raises Refused, DecisionError."""
    if isinstance(command, Propose):
        if state is not None:
            raise Refused(f"decision {id} was proposed before")
        return _proposed(command, now)
    if state is None:
        raise Refused(f"there is no decision {id}")
    if isinstance(command, Settle):
        return outcome(state, now) if state.is_open else None
    return _voted(state, command, now)


def evolve(state: Decision | None, event: Event, *, id: str, at: datetime, position: int) -> Decision | None:
    """The decision after an event. What can't follow changes nothing: anybody could have published it."""
    if isinstance(event, Proposed):
        return Decision(id=id, proposal=event, proposed_at=at, position=position) if state is None else state
    if state is None:
        return None
    if isinstance(event, Decided):
        if state.is_open and event.option in (None, *state.proposal.options):
            return msgspec.structs.replace(state, outcome=event, decided_at=at, position=position)
    elif _objection(state, event.by, event.option, at) is None and event.by not in state.votes:
        return msgspec.structs.replace(state, votes={**state.votes, event.by: event}, position=position)
    return msgspec.structs.replace(state, position=position)


def outcome(state: Decision, now: datetime) -> Decided | None:
    """What is decided as of `now`; None: votes that are still to come could change it.

    Before the deadline it is decided as soon as they can't: so the order of votes never matters.
    """
    tally, options = state.tally, state.proposal.options
    cast, everything = sum(tally.values()), sum(state.proposal.voters.values())
    to_come = 0 if now >= state.proposal.deadline_at else everything - cast
    has_quorum = cast >= Fraction(state.proposal.quorum).limit_denominator(1_000_000) * everything
    if not has_quorum:
        return None if to_come else Decided(why="no_quorum", tally=tally)
    most = max(tally.values())
    leading = [option for option in options if tally[option] == most]
    if to_come:
        rest = max((tally[option] for option in options if option != leading[0]), default=0)
        return Decided(why="votes", tally=tally, option=leading[0]) if most > rest + to_come else None
    if len(leading) == 1:
        return Decided(why="votes", tally=tally, option=leading[0])
    chosen = {REJECT: None, FIRST: leading[0]}.get(state.proposal.tie, state.proposal.tie)
    return Decided(why="tie", tally=tally, option=chosen)


def _voted(state: Decision, command: Vote, now: datetime) -> Voted | None:
    before = state.votes.get(command.by)
    if before is not None and before.option == command.option:
        return None
    objection = _objection(state, command.by, command.option, now)
    if objection is None and before is not None:
        objection = f"{command.by} has voted {before.option!r} already, and a vote is final"
    if objection is not None:
        raise Refused(objection)
    return Voted(by=command.by, option=command.option, comment=command.comment)


def _objection(state: Decision, voter: str, option: str, at: datetime) -> str | None:
    """Why a vote does not count."""
    if voter not in state.proposal.voters:
        return f"{voter!r} is no voter of decision {state.id}: voters are {', '.join(state.proposal.voters)}"
    if option not in state.proposal.options:
        return f"{option!r} is no option of decision {state.id}: options are {', '.join(state.proposal.options)}"
    if not state.is_open:
        return f"decision {state.id} has ended"
    if at >= state.proposal.deadline_at:
        return f"the time of decision {state.id} was over at {state.proposal.deadline_at:%Y-%m-%d %H:%M:%S}"
    if outcome(state, at) is not None:
        return f"decision {state.id} is decided: no other vote could change it"
    return None


def _proposed(command: Propose, now: datetime) -> Proposed:
    options, voters = tuple(command.options), dict(command.voters)
    if isinstance(command.options, str) or not 2 <= len(options) <= MOST_OPTIONS or len(set(options)) < len(options):
        raise DecisionError(f"options are 2 to {MOST_OPTIONS} different texts, not {command.options!r:.80}")
    if not all(_is_text(each) for each in (*options, *voters)):
        raise DecisionError(f"an option and a voter are texts of 1 to {_CHARACTERS} characters")
    if {REJECT, FIRST} & set(options):
        raise DecisionError(f"{REJECT!r} and {FIRST!r} are rules for a tie: name the option otherwise")
    if not 1 <= len(voters) <= MOST_VOTERS:
        raise DecisionError(f"a decision has 1 to {MOST_VOTERS} voters, not {len(voters)}")
    if not all(type(weight) is int and 1 <= weight <= 1_000_000 for weight in voters.values()):
        raise DecisionError("a voter's weight is a whole number from 1 on, a million at most")
    if not 0 < command.quorum <= 1:
        raise DecisionError(
            f"quorum is the share of all weight that has to vote, above 0 up to 1, not {command.quorum!r}"
        )
    if command.tie not in (REJECT, FIRST, *options):
        raise DecisionError(f"tie is {REJECT!r}, {FIRST!r} or one of the options, not {command.tie!r}")
    if not 0 < command.timeout_s <= LONGEST_S:
        raise DecisionError(f"timeout_s is above 0, a year at most; not {command.timeout_s!r}")
    return Proposed(
        by=command.by,
        question=command.question,
        options=options,
        voters=voters,
        quorum=float(command.quorum),
        tie=command.tie,
        deadline_at=now + timedelta(seconds=command.timeout_s),
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _CHARACTERS
