"""Every docstring example runs.

pytest's own collector would import converters/ and demo/ under their folder names; users, and the
examples, import them as jaxmix.converters and jaxmix.demo.
"""

import doctest
import importlib

import pytest

from ..uncompiled import uncompiled
from .sources import Module, modules
from .test_arrows import MAKERS

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples() -> list[doctest.DocTest]:
    """Returns the doctests of every module that users can import."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        test
        for module in modules()
        if str(module) not in MAKERS and "__main__" not in module.name
        for test in finder.find(importlib.import_module(module.name), module.name)
        if test.examples
    ]


def run(test: doctest.DocTest) -> str:
    """Returns doctest's report of failures, empty if there are none."""
    lines: list[str] = []
    # Merges give NumPy's arrays to compiled functions, which make JAX's of them. `fit` runs one
    # program for many steps.
    is_compiled = ".merging" in test.name or test.name == "jaxmix.training.fitting.fit"
    with uncompiled(apply=not is_compiled):
        doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=lines.append)
    return "".join(lines)


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
def test_example_output_matches(test: doctest.DocTest) -> None:
    """The example prints the documented output."""
    assert not (failed := run(test)), failed


def test_wrong_example_fails() -> None:
    """A wrong example is reported."""
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:" in run(example)


def test_examples_are_collected_from_all_packages() -> None:
    """The examples of converters/ are collected under the installed module names."""
    names = [test.name for test in examples()]
    for package in ("jaxmix.families.", "jaxmix.converters."):
        assert any(name.startswith(package) for name in names)
    assert all(isinstance(module, Module) for module in modules())
