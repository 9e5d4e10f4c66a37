"""A merge killed at any step leaves the old or the new output, and merging again completes it."""

import os

import pytest

from .killing import Case, kill, kill_changing, kill_two

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A base in three shards."""
    return Case(tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize(
    ("number", "kind", "is_there", "left"),
    [
        (12, "open", True, "killed: old output, 0 shards whole, 0 resumed"),
        # A shard is renamed, and its record is not written yet.
        (5, "os.rename", False, "killed: old output, 1 shards whole, 1 resumed"),
        # Everything is complete, and then sealed.
        (8, "os.rename", True, "killed: old output, 3 shards whole, 3 resumed"),
        # Just before the exchange, and just after it.
        (1, "ctypes.dlsym", True, "killed: old output, 3 shards whole, 3 resumed"),
        (9, "os.rename", True, "killed: new output, 3 shards whole, 3 resumed"),
        # While the rest is removed.
        (2, "shutil.rmtree", True, "killed: new output, "),
    ],
)
def test_killed(number: int, kind: str, is_there: bool, left: str, case: Case) -> None:
    """The output is one of two, and resuming gives the same bytes."""
    assert kill(case, number, kind, is_there=is_there).startswith(left)


@pytest.mark.parametrize(
    ("number", "at", "how", "left"),
    [
        (1000, 20, "in place", "refused, base changed: old output, resumed"),
        (30, 20, "saved anew", "killed, base changed: old output, begun anew"),
        (10, 60, "a longer header", "killed, base not changed yet: old output, resumed"),
    ],
)
def test_base_changes(number: int, at: int, how: str, left: str, case: Case) -> None:
    """A running merge is refused; a killed one is not resumed with the other base."""
    assert kill_changing(case, number, at, how) == left


@pytest.mark.parametrize("delays", [(None, None), (0.05, None)])
def test_simultaneous_merges_exclude_each_other(
    delays: tuple[float | None, float | None], case: Case
) -> None:
    """Each one ends, is killed, or is refused because the other holds the output."""
    ended, _, left = kill_two(case, delays, is_there=True).partition(": ")
    ends = set(ended.split(" and "))
    assert ends <= {"ended by itself", "killed", "refused"} and ("killed" in ends) <= any(delays)
    assert (left == "old output") <= (ends == {"killed", "refused"})
