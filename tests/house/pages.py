"""The code blocks of README.md and the pages in docs/: which are run, and which only compile.

A page runs from top to bottom: its Python in one namespace, its `jaxmix` commands through the
program, both in the current folder. A block whose first line is a comment that starts with
``# Not run by the tests:`` is only compiled, or for shell only parsed; the comment says why.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxmix.converters.cli import main

from .sources import ROOT

__all__ = ["MARK", "Block", "blocks_of", "pages", "run_page"]

MARK = "# Not run by the tests: "
# Indented fences belong to lists and tabs; the directives of the site are no code.
_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# Blocks in other languages and outputs. "" is output, or help on docs/command_line.md.
_NOT_CODE = {"", "text", "json", "yaml"}
# Programs that pages mention besides ours. They install, build or start processes elsewhere.
_OTHERS = {"pip", "git", "cd", "make", "python", "llama-server", "export"}


@dataclass(frozen=True)
class Block:
    """A block of code: its page, first line, language, text, and the reason for not running it."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def reason(self) -> str | None:
        """The reason why the block is not run; None if it is run."""
        first = self.text.partition("\n")[0]
        return first.removeprefix(MARK) if first.startswith(MARK) else None

    @property
    def place(self) -> str:
        """The page and the line, for messages."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Returns the arguments of each `jaxmix` command of a shell block."""
        arguments = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "jaxmix":
                arguments.append(words[1:])
            elif words and words[0] not in _OTHERS:
                raise AssertionError(f"{self.place}: unknown program {words[0]!r}: {line}")
        return arguments


def pages() -> list[Path]:
    """Returns README.md and every page in docs/ that has blocks of code."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in paths if list(blocks_of(page))]


def blocks_of(page: Path, text: str | None = None) -> Iterator[Block]:
    """Yields the Python and shell blocks of a page; a block in an unknown language is an error."""
    text = page.read_text(encoding="utf-8") if text is None else text
    for match in _FENCE.finditer(text):
        indent, language, code = match.groups()
        line = text[: match.start()].count("\n") + 2
        if language in ("python", "sh"):
            lines = code.splitlines(keepends=True)
            unindented = "".join(part.removeprefix(indent) for part in lines)
            yield Block(page, line, language, unindented)
        elif language not in _NOT_CODE and not language.startswith("{"):
            raise AssertionError(f"{page.name}:{line}: expected python or sh, found {language!r}")


def run_page(page: Path, text: str | None = None) -> dict[str, object]:
    """Runs a page's blocks in order in the current folder, and returns its namespace.

    Users run with JAX's default promotion rules, so they apply here too.
    """
    names: dict[str, object] = {"__name__": "__main__"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks_of(page, text):
            if block.language == "python":
                # Lines are numbered as on the page.
                source = "\n" * (block.line - 1) + block.text
                code = compile(source, str(page), "exec")
                if block.reason is None:
                    exec(code, names)
                continue
            for arguments in block.commands():
                code = 0 if block.reason else main(arguments)
                assert code == 0, f"{block.place}: jaxmix {shlex.join(arguments)} ended with {code}"
    return names
