"""Calls of language models: each is a record of its own, on `bus.llm.<provider>`, so that its cost can be added up.

It is telemetry and nothing is decided by it: work does not fail because its cost could not be written down.
"""

from __future__ import annotations

import msgspec

from bus.errors import SettingsError
from bus.format.envelope import Envelope, decode_data

LLM_CALLED = "llm.called.v1"


class LLMCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call of a model, as whoever made it saw it. Raises SettingsError for numbers that can't be.

    `provider` is a name such as `anthropic`, `model` what the provider calls it. `cached_tokens` of the `input_tokens`
    were taken from the provider's cache. With `cached` nobody was called: the answer was there already. `error` is the
    code of the problem, if the call failed.
    """

    provider: str
    model: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    cached: bool = False
    error: str = ""

    def __post_init__(self) -> None:
        for field in ("input_tokens", "output_tokens", "cached_tokens", "cost_usd", "latency_s"):
            value = getattr(self, field)
            if not 0 <= value < 1e12:
                raise SettingsError(f"a call of model {self.model!r}: {field} is a number from 0 on, not {value}")


class LLMCalled(LLMCall, frozen=True, kw_only=True, omit_defaults=True):
    """A language model was called, for this attempt. Run, phase, attempt and agent stand in the envelope as well."""

    plan: str = ""
    item: int | None = None
    instance: str = ""


_decoder = msgspec.json.Decoder(LLMCalled)


def read(message: Envelope) -> LLMCalled:
    """What a record of a call says. Raises MalformedMessage."""
    return decode_data(message, _decoder, "a call of a language model")
