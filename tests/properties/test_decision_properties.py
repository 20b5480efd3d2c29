"""Whatever the order in which the same votes come, they come to the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bus.coordination.decision import Decided, Decision, Propose, Settle, Vote, decide, evolve
from bus.errors import Refused

NOW = datetime(2026, 1, 2, tzinfo=UTC)
END = NOW + timedelta(seconds=10)
OPTIONS = ["a", "b", "c"]


@st.composite
def ballots(draw: st.DrawFn) -> tuple[Propose, list[Vote], list[Vote]]:
    """A proposal, votes of some of its voters, and the same votes in another order."""
    voters = {f"voter-{number}": draw(st.integers(1, 4)) for number in range(draw(st.integers(1, 6)))}
    proposal = Propose(
        by="ann",
        question="?",
        options=OPTIONS,
        voters=voters,
        quorum=draw(st.sampled_from([0.01, 1 / 3, 0.5, 2 / 3, 1])),
        tie=draw(st.sampled_from(["reject", "first", *OPTIONS])),
        timeout_s=10,
    )
    chosen = draw(st.lists(st.sampled_from(sorted(voters)), unique=True))
    votes = [Vote(voter, draw(st.sampled_from(OPTIONS))) for voter in chosen]
    return proposal, votes, draw(st.permutations(votes))


def come_to(proposal: Propose, votes: list[Vote]) -> Decision:
    state: Decision | None = None
    commands: list[tuple[Propose | Vote | Settle, datetime]] = [(proposal, NOW)]
    for vote in votes:
        commands += [(vote, NOW), (Settle(), NOW)]
    for position, (command, at) in enumerate([*commands, (Settle(), END)], 1):
        try:
            event = decide(state, command, id="d", now=at)
        except Refused:
            assert state is not None
            assert not state.is_open, "only what comes after the outcome is refused"
            continue
        if event is not None:
            state = evolve(state, event, id="d", at=at, position=position)
    assert state is not None
    return state


@given(ballots())
def test_any_order_of_votes_gives_the_same_outcome(drawn: tuple[Propose, list[Vote], list[Vote]]) -> None:
    proposal, votes, others = drawn
    one, other = come_to(proposal, votes), come_to(proposal, others)
    assert one.outcome is not None
    assert other.outcome is not None
    assert (one.outcome.option, one.outcome.why) == (other.outcome.option, other.outcome.why)


@given(ballots())
def test_an_early_outcome_is_that_of_all_votes_at_the_end(drawn: tuple[Propose, list[Vote], list[Vote]]) -> None:
    proposal, votes, _ = drawn
    found = come_to(proposal, votes).outcome
    assert found is not None
    weights = {option: sum(proposal.voters[vote.by] for vote in votes if vote.option == option) for option in OPTIONS}
    cast, everything = sum(weights.values()), sum(proposal.voters.values())
    leading = [option for option in OPTIONS if weights[option] == max(weights.values())]
    # 1/3 and 2/3 are as near as a float can say, on either side.
    if cast / everything < proposal.quorum - 1e-9:
        assert found == Decided(why="no_quorum", tally=weights)
    elif len(leading) == 1:
        assert (found.why, found.option) == ("votes", leading[0])
    else:
        assert found.why == "tie"
        assert found.option == {"reject": None, "first": leading[0]}.get(proposal.tie, proposal.tie)
