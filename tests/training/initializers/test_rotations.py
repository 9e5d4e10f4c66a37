"""Rotations and rescalings: the sizes of blocks, and how their starts cancel."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix.training.initializers.rotations import KINDS, nearest_divisor

from .modules import drawn, linear, only

pytestmark = pytest.mark.usefixtures("no_compiling")

_KEY = jax.random.key(0)


def test_nearest_divisor_is_the_smaller_of_two() -> None:
    """Both ends, a tie, a prime and a size of 1."""
    given = [(12, 0), (12, 5), (12, 9), (12, 99), (7, 4), (7, 5), (1, 8)]
    assert [nearest_divisor(*pair) for pair in given] == [1, 4, 6, 12, 1, 7, 1]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"oft_block_size": 5}, (3, 6)),  # 12 inputs in blocks of 4
        ({"rank": 5}, (4, 3)),  # 4 blocks of 3
        ({"rank": 5, "block_share": True}, (1, 3)),
        ({}, (1, 66)),  # the default of 32 exceeds the inputs: one block
    ],
)
def test_blocks_of_oft_divide_the_inputs(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The rank is the number of blocks; both are adjusted to a divisor."""
    update: Any = KINDS["oft"].make(_KEY, linear(10, 12), options)
    assert [x.shape for x in jax.tree.leaves(update)] == [shape]


def test_reflections_of_hra_cancel_in_pairs() -> None:
    """An odd number can't cancel, so all are drawn."""
    even, odd = (
        np.asarray(jax.tree.leaves(KINDS["hra"].make(_KEY, linear(4, 6), {"rank": rank}))[0])
        for rank in (4, 3)
    )
    assert even.shape == (6, 4) and odd.shape == (6, 3)
    np.testing.assert_array_equal(even[:, ::2], even[:, 1::2])
    assert len({column.tobytes() for column in even.T}) == 2
    assert len({column.tobytes() for column in odd.T}) == 3


@pytest.mark.parametrize(
    ("modules", "size"),
    [((), 10), (("proj",), 6), (("pro",), 10), ("mlp.proj", 6), ("proj", 10), (".*proj", 6)],
)
def test_ia3_rescales_inputs_of_named_modules(modules: Any, size: int) -> None:
    """A list has ends of names, a string is a regular expression for the whole name."""
    target = only({"mlp.proj.weight": drawn(10, 6, 3, 2)}, "mlp.proj")
    update = KINDS["ia3"].make(_KEY, target, {"feedforward_modules": modules})
    assert [x.shape for x in jax.tree.leaves(update)] == [(size,)]
