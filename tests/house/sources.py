"""The project's source files: their paths, their module names and their imports."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "ROOTS", "Import", "Module", "imports_of", "modules", "tracked"]

ROOT = Path(__file__).parents[2]
ROOTS = {"jaxmix": "jaxmix", "converters": "jaxmix.converters", "demo": "jaxmix.demo"}


@dataclass(frozen=True)
class Import:
    """One imported name in full, its line, and whether the import is inside a function."""

    name: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Module:
    """A source file and the module name under which it is installed."""

    path: Path
    name: str
    is_package: bool

    @property
    def text(self) -> str:
        """The file's contents."""
        return self.path.read_text(encoding="utf-8")

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()


@cache
def modules() -> tuple[Module, ...]:
    """Returns every Python file of jaxmix/, converters/ and demo/."""
    sources = []
    for folder, package in ROOTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            is_package = inner[-1] == "__init__"
            parts = inner[:-1] if is_package else inner
            sources.append(Module(path, ".".join((package, *parts)), is_package))
    return tuple(sources)


def imports_of(text: str, name: str, is_package: bool) -> Iterator[Import]:
    """Yields all imports of a source: ``from a import b`` as ``a.b``, relative names in full."""
    package = name.split(".") if is_package else name.split(".")[:-1]

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = package[: len(package) - child.level + 1] if child.level else []
                source = ".".join([*above, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield Import(f"{source}.{alias.name}", child.lineno, lazy)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, lazy or is_function)

    yield from visit(ast.parse(text), False)


@cache
def tracked() -> tuple[Path, ...]:
    """Returns every file that git tracks, or () outside of a git checkout."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ()
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())
