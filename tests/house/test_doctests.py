"""Every docstring's example runs.

pytest's own collector would import converters/ and demo/ by the names of their folders; users,
and so the examples, import them as jaxmix.converters and jaxmix.demo.
"""

import doctest
import importlib

import pytest

from .sources import Module, modules
from .test_arrows import MAKERS

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> list[doctest.DocTest]:
    """The doctests of every module that a user can import."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in modules()
        if str(module) not in MAKERS and "__main__" not in module.name
        for test in finder.find(importlib.import_module(module.name), module.name)
        if test.examples
    ]


def run(test: doctest.DocTest) -> str:
    """What failed, in doctest's words; empty if nothing did."""
    told: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=told.append)
    return "".join(told)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_example(test: doctest.DocTest) -> None:
    """It prints what it says."""
    assert not (failed := run(test)), failed


def test_an_example_can_fail() -> None:
    """A wrong one is seen."""
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:" in run(wrong)


def test_examples_are_found_everywhere() -> None:
    """The collector looks into converters/ too, by its installed name."""
    names = [test.name for test in examples()]
    for room in ("jaxmix.families.", "jaxmix.converters."):
        assert any(name.startswith(room) for name in names)
    assert all(isinstance(module, Module) for module in modules())
