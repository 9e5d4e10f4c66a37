"""Each module has a test file of its own name, in the folder of tests that mirrors its own."""

import ast
from pathlib import PurePosixPath

import pytest

from .sources import ROOT, modules

# Folders whose modules are rows of a table, and the test that runs all rows.
TABLES = {
    "jaxmix/families": "tests/families/test_contract.py",
    "converters/adapters/peft/kinds": "tests/parity/test_forms.py",
    "converters/layouts": "tests/converters/layouts/test_libraries.py",
    "demo": "tests/test_demo.py",
}


def own_test(path: str) -> str:
    """The test file of a module, both from the root of the repository."""
    module = PurePosixPath(path)
    return f"tests/{module.parent}/test_{module.stem.lstrip('_')}.py".replace("/jaxmix/", "/")


def is_table_of_names(text: str) -> bool:
    """Whether a module only gives other modules' names a second place."""
    return not any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.For | ast.If | ast.Assign)
        and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in ast.parse(text).body
    )


def test_each_module_has_its_tests() -> None:
    """So a reader finds the tests of a module without a search."""
    missing = {
        str(module): test
        for module in modules()
        if module.path.stem not in ("__init__", "__main__")
        and not is_table_of_names(module.text)
        and not (ROOT / (test := own_test(str(module)))).is_file()
        and str(PurePosixPath(str(module)).parent) not in TABLES
    }
    assert not missing


def test_tables_exist() -> None:
    """The folders that are excused above, and the tests that stand in for theirs."""
    assert all(
        (ROOT / folder).is_dir() and (ROOT / test).is_file() for folder, test in TABLES.items()
    )


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("jaxmix/bank/maps.py", "tests/bank/test_maps.py"),
        ("jaxmix/effects.py", "tests/test_effects.py"),
        ("converters/files/_open.py", "tests/converters/files/test_open.py"),
    ],
)
def test_own_test(module: str, test: str) -> None:
    assert own_test(module) == test


def test_module_that_only_exports_needs_no_tests() -> None:
    exports = '"""Names."""\n\nfrom a import b\n\n__all__ = ["b"]\n'
    assert is_table_of_names(exports) and not is_table_of_names(f"{exports}\nc = b\n")
