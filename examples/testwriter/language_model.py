"""Asks a language model for the tests of one module: any server that speaks OpenAI's chat completions."""

import ast
import json
import re
import urllib.request
from collections.abc import Mapping
from typing import Self

from msgspec import Struct

SOURCE_CHARACTERS = 24_000
ANSWER_BYTES = 1 << 20
ANSWER_TOKENS = 4_000
TIMEOUT_S = 60.0
REQUEST = """Write property tests with Hypothesis for the Python module `{name}` below.
Answer with one Python file and nothing else. Import the module under its full name. Each test is a function
`test_*` decorated with `@given`; use neither pytest nor settings, touch neither files nor the network.

{source}
"""


class NoTests(Exception):
    """The model gave no usable answer: unreachable, too slow, or not a file of tests."""


class LanguageModel(Struct, frozen=True):
    """Where the model is served. `url` is the base that ends before `/chat/completions`."""

    url: str
    model: str
    key: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """None unless both PHASEBUS_LLM_URL and PHASEBUS_LLM_MODEL are set; PHASEBUS_LLM_KEY is optional."""
        url, model = environment.get("PHASEBUS_LLM_URL"), environment.get("PHASEBUS_LLM_MODEL")
        return cls(url, model, environment.get("PHASEBUS_LLM_KEY", "")) if url and model else None

    def write(self, name: str, source: str) -> str:
        """Blocks for up to TIMEOUT_S per read; raises NoTests. A long source is cut off."""
        answer = extract(self.complete(REQUEST.format(name=name, source=source[:SOURCE_CHARACTERS])))
        if not count_tests(answer):
            raise NoTests("the answer holds no test")
        return answer

    def complete(self, prompt: str) -> str:
        """The model's answer to one message; raises NoTests."""
        if not self.url.startswith(("http://", "https://")):
            raise NoTests("PHASEBUS_LLM_URL is no http address")
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(  # noqa: S310 - http only, checked above
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
                answer = json.loads(response.read(ANSWER_BYTES))
            return str(answer["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NoTests(f"{type(error).__name__}: {error}") from error


def extract(answer: str) -> str:
    """The code of an answer: the first fenced block, or all of it."""
    fenced = re.search(r"```[a-zA-Z]*\n(.*?)```", answer, re.DOTALL)
    return (fenced.group(1) if fenced else answer).strip() + "\n"


def count_tests(source: str) -> int:
    """How many top-level `test_*` functions a source has; raises NoTests when it is not Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise NoTests(f"the answer is not Python: {error}") from error
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in body)
