"""The API reference in docs/api/ has every public name, and hand-written tables have every row."""

import importlib
import re
from inspect import isclass, isroutine
from types import ModuleType
from typing import Any

import pytest

from jaxmix.converters.adapters.loading import FORMATS
from jaxmix.layout import libraries
from jaxmix.training.initializers import KINDS

from .sources import ROOT

DOCS = ROOT / "docs"
PUBLIC = (
    "jaxmix",
    "jaxmix.converters.comfyui",
    "jaxmix.converters.diffusers",
    "jaxmix.converters.kohya",
    "jaxmix.converters.layouts.maxtext",
    "jaxmix.converters.merging",
    "jaxmix.converters.peft",
    "jaxmix.converters.qwix",
    "jaxmix.converters.sharded_reading",
    "jaxmix.demo",
    "jaxmix.errors",
    "jaxmix.families",
    "jaxmix.layout",
    "jaxmix.measures",
    "jaxmix.models",
    "jaxmix.training",
    "jaxmix.unmerged",
)
# The tables that a layout's module registers; `jaxmix.layout.libraries` returns all of them.
INTERNAL = {"jaxmix.converters.layouts.maxtext.TABLES"}
_DIRECTIVE = re.compile(r"^\.\. (?:currentmodule|auto\w+|py:data):: ([\w.]+)$", re.MULTILINE)
_MODULE = re.compile(r"^\.\. currentmodule:: ", re.MULTILINE)


def documented() -> list[str]:
    """Returns the full names of all objects on the pages of the reference."""
    names = []
    for page in sorted((DOCS / "api").glob("*.rst")):
        module = "jaxmix"
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := _DIRECTIVE.match(line):
                if _MODULE.match(line):
                    module = match[1]
                else:
                    names.append(f"{module}.{match[1]}")
    return names


def resolved(name: str) -> Any:
    """Returns the object of a full name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def identity(name: str) -> Any:
    """Returns a key of an object: its id, or a constant's name, as constants may be equal."""
    value = resolved(name)
    return id(value) if callable(value) else name


def undocumented(names: list[str]) -> list[str]:
    """Returns the public names whose object is on no page, under this or another name."""
    identities = {identity(name) for name in names}
    missing = []
    for module in PUBLIC:
        for attribute in importlib.import_module(module).__all__:
            name = f"{module}.{attribute}"
            is_module = isinstance(resolved(name), ModuleType)
            if name not in INTERNAL and not is_module and identity(name) not in identities:
                missing.append(name)
    return missing


def test_reference_has_every_public_name() -> None:
    """Each public name is on a page, and a name that is missing is noticed."""
    names = documented()
    assert undocumented(names) == []
    assert undocumented([n for n in names if n != "jaxmix.compose"]) == ["jaxmix.compose"]
    assert "jaxmix.layout.TORCH" in undocumented([n for n in names if not n.endswith(".TORCH")])


def test_reference_has_each_name_once() -> None:
    """An object is not documented twice, under one name or two."""
    names = documented()
    assert len({identity(name) for name in names}) == len(names)


def test_overview_has_every_function_and_class() -> None:
    """The overview lists the objects of all pages, except families, which have their own tables."""
    overview = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    names = [name for name in documented() if not name.startswith("jaxmix.families.")]
    names = [name for name in names if isroutine(resolved(name)) or isclass(resolved(name))]
    assert [n for n in names if f"   {n.rpartition('.')[2]}\n" not in overview] == []


def test_figures_of_the_readme_are_those_of_the_pages() -> None:
    """README's figures are on the pages that it links, and its counts are the library's."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    speed = (DOCS / "speed.md").read_text(encoding="utf-8")
    divergence = (DOCS / "peft_divergence.md").read_text(encoding="utf-8")
    types = (DOCS / "peft_types.md").read_text(encoding="utf-8").partition("## Refused")[0]
    assert "[41 of 125 ordered triples]" in readme
    assert "| triples of LoRA, LoHa, LoKr, AdaLoRA, OFT | 125 | 41 |" in divergence
    rows = len(re.findall(r"^\| [A-Z0-9_]+ \|", types, re.MULTILINE))
    assert f"all [{rows} types that act on weights]" in readme
    row = re.search(r"\| LoRA, LoHa, LoKr, OFT \| \+(\d+%) \| \+(\d+%) \|", speed)
    assert row and f"they add {row[1]} to a token's time, in PEFT {row[2]}" in readme
    bank = re.search(r"it takes (\S+) times as long as a batch that", " ".join(speed.split()))
    assert bank and f"64 mixes in one batch take {bank[1]} times as long as one" in readme
    kinds = f"{len(KINDS)} kinds"
    for page in ("index.md", "training.md", "start/training.md"):
        assert kinds in (DOCS / page).read_text(encoding="utf-8"), (page, kinds)


def first_column(page: str, heading: str) -> set[str]:
    """Returns the code in the first column of the table below a header row."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("page", "heading", "expected"),
    [
        ("formats.md", "`format=`", {form.name for form in FORMATS} - {"mix"}),
        ("layouts.md", "layout", set(libraries())),
        (
            "formats.md",
            "table",
            {path.stem for path in (ROOT / "converters/names/images").glob("*.json")},
        ),
    ],
)
def test_tables_have_every_row(page: str, heading: str, expected: set[str]) -> None:
    """The tables of formats, layouts and image models list the library's."""
    assert first_column(page, heading) == expected
