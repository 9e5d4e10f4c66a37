"""Killed at any step, a merge leaves the old output or the new one, and `resume` ends it."""

import os

import pytest

from .killing import Case, kill

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A base in three shards."""
    return Case(tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize(
    ("number", "kind", "is_there", "left"),
    [
        (12, "open", True, "killed: old output, 0 shards whole, 0 gone on from"),
        # A shard is renamed, and nobody has written down that it is whole.
        (5, "os.rename", False, "killed: old output, 1 shards whole, 1 gone on from"),
        # All is whole, and then sealed.
        (8, "os.rename", True, "killed: old output, 3 shards whole, 3 gone on from"),
        # Just before the exchange, and just after it.
        (1, "ctypes.dlsym", True, "killed: old output, 3 shards whole, 3 gone on from"),
        (9, "os.rename", True, "killed: new output, 3 shards whole, 3 gone on from"),
        # While the rest is removed.
        (2, "shutil.rmtree", True, "killed: new output, "),
    ],
)
def test_killed(number: int, kind: str, is_there: bool, left: str, case: Case) -> None:
    """Whatever is there, it is one of two outputs, and going on ends with the same bytes."""
    assert kill(case, number, kind, is_there=is_there).startswith(left)
