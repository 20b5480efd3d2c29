"""Writes the test file of one module: by a language model where one is configured, else by the ghostwriter."""

import asyncio
from pathlib import Path

import msgspec
from children import run
from contracts import Module, Write, Written
from language_model import LanguageModel, NoTests, count_tests
from msgspec import Struct

LIMIT_S = 20.0
MODEL_S = 75.0
MEMORY_BYTES = 1 << 30


class Manuscript(Struct):
    """What a provider gives back: a source, or the reason why there is none."""

    source: str = ""
    tests: int = 0
    note: str = ""
    skipped: str = ""


async def write(query: Write, model: LanguageModel | None, *, limit_s: float = LIMIT_S) -> Written:
    """Write the tests of a module into `query.workdir`; a module without tests is skipped with a reason."""
    module = query.module
    if module.problem:
        return Written(module.name, module.root, skipped=module.problem)
    provider, note = "ghostwriter", ""
    manuscript = None
    if model is not None:
        try:
            manuscript, provider = await by_model(module, model), "language model"
        except NoTests as error:
            note = f"the language model gave no tests ({error})"
    if manuscript is None:
        manuscript = await by_ghostwriter(module, query.workdir, limit_s)
    note = "; ".join(part for part in (note, manuscript.note) if part)
    if not manuscript.source:
        return Written(module.name, module.root, provider=provider, skipped=manuscript.skipped, note=note)
    path = Path(query.workdir, f"test_{module.name.replace('.', '_')}.py")
    await asyncio.to_thread(path.write_text, manuscript.source, encoding="utf-8")
    return Written(module.name, module.root, str(path), manuscript.tests, provider, note=note)


async def by_model(module: Module, model: LanguageModel) -> Manuscript:
    """Raises NoTests."""
    source = await asyncio.to_thread(Path(module.path).read_text, encoding="utf-8", errors="replace")
    try:
        async with asyncio.timeout(MODEL_S):
            answer = await asyncio.to_thread(model.write, module.name, source)
    except TimeoutError as error:
        raise NoTests(f"no whole answer within {MODEL_S:g} s") from error
    return Manuscript(answer, count_tests(answer))


async def by_ghostwriter(module: Module, workdir: str, limit_s: float) -> Manuscript:
    """The ghostwriter imports the module, so it works in a child process."""
    finished = await run(
        "ghost.py", module.name, module.root, workdir, f"{limit_s:g}", str(MEMORY_BYTES), limit_s=limit_s
    )
    if finished.exit_code is None:
        return Manuscript(skipped=f"importing it and writing its tests took longer than {limit_s:g} s")
    if not finished.lines:
        return Manuscript(
            skipped=f"importing it or writing its tests ended the process with exit code {finished.exit_code}"
        )
    return msgspec.json.decode(finished.lines[-1], type=Manuscript)
