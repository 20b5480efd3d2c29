"""What the five agents say to each other; every capability has its question and its answer here."""

from typing import Literal

from msgspec import Struct

Verdict = Literal["pass", "fail", "error", "timeout"]


class Scan(Struct, frozen=True):
    """`path`: a folder, one `.py` file, or the name of an importable package such as `json`."""

    path: str
    limit: int = 12


class Module(Struct, frozen=True):
    """One module as its source shows it. `root` is the folder that must be importable for `name` to import."""

    name: str
    path: str
    root: str
    source_bytes: int
    functions: list[str] = []
    classes: list[str] = []
    problem: str = ""


class Scanned(Struct, frozen=True):
    """The biggest modules by name; `left_out` counts the rest. Later phases write to `workdir` and `destination`."""

    root: str
    package: str
    modules: list[Module]
    left_out: int
    workdir: str
    destination: str


class Measure(Struct, frozen=True):
    module: Module
    root: str


class Measured(Struct, frozen=True):
    """`typed_share` is the part of parameters and returns with an annotation, 0 to 1."""

    module: str
    lines: int = 0
    branches: int = 0
    functions: int = 0
    undocumented: int = 0
    typed_share: float = 0.0
    untested: bool = True
    problem: str = ""


class Write(Struct, frozen=True):
    module: Module
    workdir: str


class Written(Struct, frozen=True):
    """A file of `tests` tests at `path`, or the reason why there is none in `skipped`."""

    module: str
    root: str
    path: str = ""
    tests: int = 0
    provider: str = ""
    skipped: str = ""
    note: str = ""


class Run(Struct, frozen=True):
    """`limit_s` bounds the whole file, `test_s` one test, `memory_bytes` the address space of each process."""

    written: Written
    limit_s: float = 30.0
    test_s: float = 2.0
    memory_bytes: int = 1 << 30


class Outcome(Struct, frozen=True):
    """`fail`: the property is false for the input in `message`; `error`: the test could not be carried out."""

    name: str
    outcome: Verdict
    milliseconds: int
    message: str = ""


class Ran(Struct, frozen=True):
    module: str
    outcomes: list[Outcome]
    problem: str = ""


class Draft(Struct, frozen=True):
    scan: Scanned
    measures: list[Measured]
    written: list[Written]
    results: list[Ran]


class Drafted(Struct, frozen=True):
    modules: int
    tests: int
    passed: int
    failed: int
    errors: int
    timeouts: int
    drafts: list[str]
    destination: str


class Publish(Struct, frozen=True):
    drafts: list[str]
    destination: str


class Published(Struct, frozen=True):
    paths: list[str]
