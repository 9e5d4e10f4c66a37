"""The package's face: what `dir` shows, and that no public name hides a module."""

import importlib
import inspect
import pkgutil
import typing

import pytest

import jaxmix
from jaxmix.converters.adapters.loading import FORMATS


def test_dir_shows_the_public_names_only() -> None:
    """Submodules that Python adds to the package on import are not shown."""
    shown = {name for name in dir(jaxmix) if not name.startswith("__")}
    assert shown == set(jaxmix.__all__)
    assert all(hasattr(jaxmix, name) for name in shown)


def test_load_states_what_it_returns_and_reads() -> None:
    """A type checker knows what `load` returns, and its docstring names every format."""
    hints = typing.get_type_hints(jaxmix.load)
    assert hints["return"] == jaxmix.Adapter | jaxmix.Mix
    text = inspect.getdoc(jaxmix.load) or ""
    assert [item.name for item in FORMATS if f'``"{item.name}"``' not in text] == []


def _packages() -> list[str]:
    found = pkgutil.walk_packages(jaxmix.__path__, "jaxmix.")
    return ["jaxmix", *(info.name for info in found if info.ispkg and ".demo" not in info.name)]


@pytest.mark.parametrize("name", _packages())
def test_no_function_hides_a_module(name: str) -> None:
    """No public function or class of a package has the name of a module in it."""
    package = importlib.import_module(name)
    inside = {info.name for info in pkgutil.iter_modules(package.__path__)}
    public = inside & set(getattr(package, "__all__", ()))
    assert not {name for name in public if not inspect.ismodule(getattr(package, name))}
