"""The rules of a decision: who may vote, when it is over, and what it comes to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bus.coordination.decision import (
    Command,
    Decided,
    Decision,
    Propose,
    Proposed,
    Settle,
    Vote,
    Voted,
    decide,
    evolve,
    outcome,
)
from bus.errors import DecisionError, Refused

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
END = NOW + timedelta(seconds=60)


def proposal(**changed: Any) -> Propose:
    values: dict[str, Any] = {
        "by": "ann",
        "question": "ship it?",
        "options": ["yes", "no"],
        "voters": {"ann": 1, "bob": 1, "eve": 1},
        "quorum": 0.5,
        "tie": "reject",
        "timeout_s": 60.0,
    }
    return Propose(**(values | changed))


def after(state: Decision | None, command: Command, at: datetime = NOW) -> Decision:
    event = decide(state, command, id="d", now=at)
    assert event is not None
    found = evolve(state, event, id="d", at=at, position=(state.position if state else 0) + 1)
    assert found is not None
    return found


def voted(votes: dict[str, str], **changed: Any) -> Decision:
    state = after(None, proposal(**changed))
    for voter, option in votes.items():
        state = after(state, Vote(voter, option))
    return state


def test_it_is_decided_as_soon_as_no_other_vote_could_change_it() -> None:
    state = voted({"ann": "yes"})
    assert outcome(state, NOW) is None
    state = after(state, Vote("bob", "yes"))
    assert outcome(state, NOW) == Decided(why="votes", tally={"yes": 2, "no": 0}, option="yes")
    with pytest.raises(Refused, match="no other vote"):
        decide(state, Vote("eve", "no"), id="d", now=NOW)


def test_weights_count_and_not_heads() -> None:
    state = voted({"bob": "no", "eve": "no", "ann": "yes"}, voters={"ann": 3, "bob": 1, "eve": 1})
    assert outcome(state, NOW) == Decided(why="votes", tally={"yes": 3, "no": 2}, option="yes")


def test_too_few_votes_are_no_decision_and_that_is_known_at_the_end_only() -> None:
    state = voted({"ann": "yes"}, quorum=0.5)
    assert outcome(state, END - timedelta(microseconds=1)) is None
    assert outcome(state, END) == Decided(why="no_quorum", tally={"yes": 1, "no": 0})


def test_at_the_end_the_votes_there_are_decide_if_they_are_enough() -> None:
    assert outcome(voted({"ann": "yes"}, quorum=1 / 3), END) == Decided(
        why="votes", tally={"yes": 1, "no": 0}, option="yes"
    )


@pytest.mark.parametrize(("tie", "option"), [("reject", None), ("first", "yes"), ("no", "no"), ("later", "later")])
def test_the_tie_rule_speaks_when_votes_are_equal(tie: str, option: str | None) -> None:
    state = voted(
        {"bob": "no", "ann": "yes"}, tie=tie, options=["later", "yes", "no"], voters={"ann": 1, "bob": 1}, quorum=1
    )
    found = outcome(state, NOW)
    assert found is not None
    assert (found.why, found.option) == ("tie", option)


def test_the_same_vote_again_is_nothing_and_another_is_refused() -> None:
    state = voted({"ann": "yes"})
    assert decide(state, Vote("ann", "yes", "again"), id="d", now=NOW) is None
    with pytest.raises(Refused, match="final"):
        decide(state, Vote("ann", "no"), id="d", now=NOW)


@pytest.mark.parametrize(
    ("vote", "at", "says"),
    [
        (Vote("mallory", "yes"), NOW, "no voter"),
        (Vote("ann", "maybe"), NOW, "no option"),
        (Vote("ann", "yes"), END, "over"),
    ],
)
def test_who_and_what_and_when_is_not_asked_for_is_refused(vote: Vote, at: datetime, says: str) -> None:
    state = after(None, proposal())
    with pytest.raises(Refused, match=says):
        decide(state, vote, id="d", now=at)
    ignored = evolve(state, Voted(by=vote.by, option=vote.option), id="d", at=at, position=9)
    assert ignored is not None
    assert (ignored.votes, ignored.position) == ({}, 9)


def test_an_outcome_is_final() -> None:
    state = after(voted({"ann": "yes"}, quorum=0.1), Settle(), END)
    assert (state.is_open, state.option) == (False, "yes")
    assert decide(state, Settle(), id="d", now=END) is None
    with pytest.raises(Refused, match="has ended"):
        decide(state, Vote("bob", "no"), id="d", now=NOW)
    again = evolve(state, Decided(why="votes", tally={}, option="no"), id="d", at=END, position=9)
    assert again is not None
    assert again.option == "yes"


def test_what_nobody_asked_for_is_no_outcome_and_a_proposal_comes_first() -> None:
    state = after(None, proposal())
    forged = evolve(state, Decided(why="votes", tally={}, option="all my money"), id="d", at=NOW, position=9)
    assert forged is not None
    assert forged.is_open
    assert evolve(None, Voted(by="ann", option="yes"), id="d", at=NOW, position=1) is None
    with pytest.raises(Refused, match="there is no decision"):
        decide(None, Settle(), id="d", now=NOW)
    with pytest.raises(Refused, match="before"):
        decide(state, proposal(), id="d", now=NOW)
    event = decide(None, proposal(), id="d", now=NOW)
    assert isinstance(event, Proposed)
    assert event.deadline_at == END


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"options": ["yes"]}, "options"),
        ({"options": ["yes", "yes"]}, "options"),
        ({"options": "yes"}, "options"),
        ({"options": ["first", "second"]}, "rules for a tie"),
        ({"options": ["", "no"]}, "texts"),
        ({"voters": {}}, "voters"),
        ({"voters": {"ann": 0}}, "weight"),
        ({"voters": {"ann": True}}, "weight"),
        ({"quorum": 0}, "quorum"),
        ({"quorum": 1.5}, "quorum"),
        ({"quorum": float("nan")}, "quorum"),
        ({"tie": "last"}, "tie"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
    ],
)
def test_what_can_not_be_voted_on_is_refused_with_its_field(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(DecisionError, match=says):
        decide(None, proposal(**changed), id="d", now=NOW)
