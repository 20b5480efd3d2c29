"""Folds what the other agents found into one report, as Markdown and as HTML, and moves drafts to where they stay."""

from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from contracts import Draft, Drafted, Outcome, Publish, Published, Verdict

OUTCOMES: tuple[Verdict, ...] = ("pass", "fail", "error", "timeout")
COLUMNS = ("module", "functions", "branches", "typed", "tests", *OUTCOMES, "remark")
NUMBERS = range(1, len(COLUMNS) - 1)
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
.number { text-align: right; font-variant-numeric: tabular-nums }
.table { overflow-x: auto }
pre { padding: .8rem; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; white-space: pre-wrap }
"""


class Finding(NamedTuple):
    module: str
    outcome: Outcome


def draft(query: Draft) -> Drafted:
    """Write the report's two drafts into the scan's workdir and count everything up."""
    folder = Path(query.scan.workdir)
    drafts = {folder / "report.md": markdown(query), folder / "report.html": html(query)}
    for path, text in drafts.items():
        path.write_text(text, encoding="utf-8")
    counts = Counter(outcome.outcome for result in query.results for outcome in result.outcomes)
    return Drafted(
        modules=len(query.scan.modules),
        tests=counts.total(),
        passed=counts["pass"],
        failed=counts["fail"],
        errors=counts["error"],
        timeouts=counts["timeout"],
        drafts=[*map(str, drafts), *(written.path for written in query.written if written.path)],
        destination=query.scan.destination,
    )


def publish(query: Publish) -> Published:
    """Move drafts to the destination; a reader there sees a file whole or not at all.

    May be repeated: a draft that a broken-off attempt has moved already counts as published.
    """
    destination = Path(query.destination)
    destination.mkdir(parents=True, exist_ok=True)
    return Published([str(move(Path(path), destination / Path(path).name)) for path in query.drafts])


def move(source: Path, target: Path) -> Path:
    """Copy beside the target and rename: the workdir is often on another filesystem. Raises FileNotFoundError."""
    if not source.exists() and target.exists():
        return target
    unfinished = target.with_name(f".{target.name}.unfinished")
    unfinished.write_bytes(source.read_bytes())
    unfinished.replace(target)
    source.unlink()
    return target


def rows(query: Draft) -> list[tuple[str, ...]]:
    """One row per module, in the order of COLUMNS; a module that an agent gave nothing for has empty cells."""
    measures = {measured.module: measured for measured in query.measures}
    results = {result.module: result for result in query.results}
    table = []
    for module in query.scan.modules:
        measured, result = measures.get(module.name), results.get(module.name)
        counts = Counter(outcome.outcome for outcome in result.outcomes) if result else Counter[Verdict]()
        size = (
            (str(measured.functions), str(measured.branches), f"{measured.typed_share:.0%}") if measured else ("",) * 3
        )
        outcomes = (str(counts[outcome]) for outcome in OUTCOMES)
        table.append((module.name, *size, str(counts.total()), *outcomes, result.problem if result else ""))
    return table


def findings(query: Draft) -> list[Finding]:
    """What did not pass: falsified properties first, then tests that hung, then those that could not be run."""
    order: tuple[Verdict, ...] = ("fail", "timeout", "error")
    found = [
        Finding(result.module, outcome)
        for result in query.results
        for outcome in result.outcomes
        if outcome.outcome in order
    ]
    return sorted(found, key=lambda finding: (order.index(finding.outcome.outcome), finding.module))


def summary(query: Draft) -> str:
    counts = Counter(outcome.outcome for result in query.results for outcome in result.outcomes)
    parts = [f"{counts.total()} tests of {len(query.scan.modules)} modules"]
    parts += [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES]
    if query.scan.left_out:
        parts.append(f"{query.scan.left_out} smaller modules left out")
    return " · ".join(parts)


def remarks(query: Draft) -> Iterator[str]:
    """What the measuring and the writing have to say beside the numbers."""
    untested = [measured.module for measured in query.measures if measured.untested and not measured.problem]
    if untested:
        yield f"No test file mentions {', '.join(untested)}."
    undocumented = sum(measured.undocumented for measured in query.measures)
    if undocumented:
        yield f"{undocumented} public functions have no docstring."
    for written in query.written:
        if written.note:
            yield f"{written.module} ({written.provider}): {written.note}."


def markdown(query: Draft) -> str:
    lines = [f"# Tests of {cell(query.scan.package)}", "", summary(query), ""]
    lines += [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join('--:' if i in NUMBERS else '---' for i in range(len(COLUMNS)))}|",
    ]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows(query)]
    lines += ["", *(f"- {cell(remark)}" for remark in remarks(query)), "", "## Findings", ""]
    for module, outcome in findings(query):
        indented = "\n".join(f"    {line}" for line in outcome.message.splitlines())
        lines += [f"### {cell(module)}: {cell(outcome.name)} ({outcome.outcome})", "", indented, ""]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text that stays in its table cell and is no markup."""
    return escape(" ".join(text.split()), quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("_", "\\_")


def html(query: Draft) -> str:
    title = f"Tests of {escape(query.scan.package)}"
    head = "".join(f"<th{css(i)}>{column}</th>" for i, column in enumerate(COLUMNS))
    body = "".join(
        "<tr>" + "".join(f"<td{css(i)}>{escape(value)}</td>" for i, value in enumerate(row)) + "</tr>\n"
        for row in rows(query)
    )
    notes = "".join(f"<li>{escape(remark)}</li>" for remark in remarks(query))
    found = "".join(
        f"<h3>{escape(module)}: {escape(outcome.name)} ({outcome.outcome})</h3>\n<pre>{escape(outcome.message)}</pre>\n"
        for module, outcome in findings(query)
    )
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<h1>{title}</h1>
<p>{escape(summary(query))}</p>
<div class="table"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
<ul>{notes}</ul>
<h2>Findings</h2>
{found or "<p>None: every test passed.</p>"}
</html>
"""


def css(column: int) -> str:
    return ' class="number"' if column in NUMBERS else ""
