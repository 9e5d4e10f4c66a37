"""The package's face: what `dir` shows, and that no public name hides a module."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing

import pytest

import jaxmix
from jaxmix.converters.adapters.loading import FORMATS

from .messages import full_text


def test_dir_shows_the_public_names_only() -> None:
    """Submodules that Python adds to the package on import are not shown."""
    names = {name for name in dir(jaxmix) if not name.startswith("__")}
    assert names == set(jaxmix.__all__)
    assert all(hasattr(jaxmix, name) for name in names)


def test_load_states_what_it_returns_and_reads() -> None:
    """A type checker knows what `load` returns, and its docstring names every format."""
    hints = typing.get_type_hints(jaxmix.load)
    assert hints["return"] == jaxmix.Adapter | jaxmix.Mix
    text = inspect.getdoc(jaxmix.load) or ""
    assert [item.name for item in FORMATS if f'``"{item.name}"``' not in text] == []


def test_names_are_imported_on_first_use() -> None:
    """`import jaxmix` is quick, and type checkers see the names that are imported."""
    code = "import jaxmix, sys; print(sorted({'jax', 'flax', 'numpy', 'rich'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
    tree = ast.parse(inspect.getsource(jaxmix))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: f"{line.module}.{alias.name}" if line.module == "jaxmix" else line.module
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert typed == jaxmix._HOMES
    assert sorted(typed) == sorted(jaxmix.__all__)


def test_subpackages_are_attributes() -> None:
    """`import jaxmix` is enough for `jaxmix.training.RankSchedule`; an unknown name is an error."""
    assert jaxmix.training.RankSchedule
    with pytest.raises(
        AttributeError, match=full_text("module 'jaxmix' has no attribute 'composed'")
    ):
        _ = jaxmix.composed


def _packages() -> list[str]:
    modules = pkgutil.walk_packages(jaxmix.__path__, "jaxmix.")
    return ["jaxmix", *(info.name for info in modules if info.ispkg and ".demo" not in info.name)]


@pytest.mark.parametrize("name", _packages())
def test_no_function_hides_a_module(name: str) -> None:
    """No public function or class of a package has the name of a module in it."""
    package = importlib.import_module(name)
    inside = {info.name for info in pkgutil.iter_modules(package.__path__)}
    public = inside & set(getattr(package, "__all__", ()))
    assert not {name for name in public if not inspect.ismodule(getattr(package, name))}
