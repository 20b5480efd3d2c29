"""Finds the modules behind a path or a package name by reading source, never by importing it."""

import ast
import importlib.util
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

from contracts import Module, Scan, Scanned

SKIPPED_FOLDERS = {"tests", "test", "testing", "docs", "node_modules", "site-packages", "build", "dist", "__pycache__"}
SKIPPED_FILES = {"setup.py", "conftest.py", "noxfile.py", "__main__.py"}


class NothingToScan(ValueError):
    """The path leads to no Python source; asking again will not change that."""


def scan(query: Scan, *, workdir: str = "", destination: str = "") -> Scanned:
    """List the modules behind `query.path`; raises NothingToScan.

    `workdir` is where a fresh folder of this run goes (default: the system's), `destination` where reports end
    (default: `testwriter-report` in the current folder).
    """
    target = locate(query.path)
    files = list(sources(target)) if target.is_dir() else [target]
    if not files:
        raise NothingToScan(f"{query.path!r} holds no Python modules (tests and hidden folders are not read)")
    biggest = sorted(files, key=lambda file: (-file.stat().st_size, file))[: query.limit]
    if workdir:
        Path(workdir).mkdir(parents=True, exist_ok=True)
    return Scanned(
        root=str(import_root(target)),
        package=target.stem,
        modules=sorted((describe(file) for file in biggest), key=lambda module: module.name),
        left_out=len(files) - len(biggest),
        workdir=tempfile.mkdtemp(prefix="testwriter-", dir=workdir or None),
        destination=str(Path(destination or "testwriter-report").absolute()),
    )


def locate(path: str) -> Path:
    """A folder or `.py` file as it is; otherwise the source of the package of that name; raises NothingToScan."""
    place = Path(path).expanduser().resolve()
    if place.is_dir() or (place.is_file() and place.suffix == ".py"):
        return place
    if not path.isidentifier():
        # A dotted name is refused too: finding a submodule would import its package.
        raise NothingToScan(f"{path!r} is no folder, no Python file and no name of a package")
    spec = importlib.util.find_spec(path)
    if spec is None:
        raise NothingToScan(f"there is no folder, file or package {path!r}")
    if spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    if not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        raise NothingToScan(f"the module {path!r} has no Python source")
    return Path(spec.origin)


def sources(folder: Path) -> Iterator[Path]:
    """The `.py` files below a folder without tests, hidden folders, virtual environments and build output."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        if entry.is_dir():
            if entry.name not in SKIPPED_FOLDERS and not (entry / "pyvenv.cfg").exists():
                yield from sources(entry)
        elif entry.suffix == ".py" and entry.name not in SKIPPED_FILES and not is_test(entry):
            yield entry


def is_test(file: Path) -> bool:
    return file.suffix == ".py" and (file.name.startswith("test_") or file.name.endswith("_test.py"))


def import_root(place: Path) -> Path:
    """The nearest folder above that is not itself a package: what has to be on `sys.path`."""
    folder = place if place.is_dir() else place.parent
    while (folder / "__init__.py").exists():
        folder = folder.parent
    return folder


def describe(file: Path) -> Module:
    """A module's public top-level functions and classes; a syntax error is a `problem`, not an exception."""
    root = import_root(file)
    parts = file.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    source_bytes = file.stat().st_size
    try:
        body = parse(file).body
    except (SyntaxError, ValueError) as error:
        return Module(name, str(file), str(root), source_bytes, problem=f"cannot be parsed: {error}")
    return Module(
        name,
        str(file),
        str(root),
        source_bytes,
        functions=[node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")],
        classes=[node.name for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")],
    )


def parse(file: Path) -> ast.Module:
    """The syntax tree of a file in whatever encoding it declares."""
    with tokenize.open(file) as source:
        return ast.parse(source.read(), filename=file.name)
