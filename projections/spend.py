"""Spend: what calls of language models cost, in money, tokens and time, by provider, model, agent, phase and run."""

from __future__ import annotations

from datetime import datetime

import msgspec

from bus.handlers.llm import LLM_CALLED, read
from bus.history.happening import Happening
from projections.projection import Projection, Rows
from projections.sketch import Sketch


class Spend(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Calls that have something in common. `cached` of them were answered without a call, `failed` got no answer.

    `latency` is that of calls that were made. Money is in US dollars.
    """

    calls: int = 0
    cached: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    latency: Sketch = Sketch()
    first_at: datetime
    last_at: datetime


def _fold(rows: Rows[Spend], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    call = read(message)
    keys = ["all", f"provider/{call.provider}", f"model/{call.provider}/{call.model}"]
    if message.agent:
        keys.append(f"agent/{message.agent}")
    if message.runid:
        keys.append(f"run/{message.runid}")
        keys.append(f"phase/{call.plan}/{message.phase}")
    at = happening.at
    for key in keys:
        row = rows.get(key) or Spend(first_at=at, last_at=at)
        was_made = not call.cached
        rows[key] = Spend(
            calls=row.calls + 1,
            cached=row.cached + call.cached,
            failed=row.failed + bool(call.error),
            input_tokens=row.input_tokens + call.input_tokens,
            output_tokens=row.output_tokens + call.output_tokens,
            cached_tokens=row.cached_tokens + call.cached_tokens,
            # Rounded, so that it is the same in whatever order it is added up, for all sums that matter.
            cost_usd=round(row.cost_usd + call.cost_usd, 9),
            latency=row.latency.with_one(call.latency_s) if was_made else row.latency,
            first_at=row.first_at,
            last_at=max(row.last_at, at),
        )


SPEND: Projection[Spend] = Projection(
    name="spend", version=1, row=Spend, fold=_fold, subjects=["llm.>"], types=frozenset({LLM_CALLED})
)
"""What language models cost: keys `all`, `provider/P`, `model/P/M`, `agent/A`, `phase/PLAN/PHASE` and `run/RUN`."""
