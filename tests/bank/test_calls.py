"""Calls of a bank: the rows of batches and results, and the params that a call is given."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, Bank
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import LoRA

from ..messages import full_text
from ..uncompiled import uncompiled

PARAMS = {"a.weight": jnp.ones((4, 6))}
BANK = Bank({"lora": Adapter({"a": LoRA(jnp.ones((2, 6)), jnp.ones((4, 2)), 1.0)})}, PARAMS)


def project(params: Any, x: Any) -> Any:
    return x @ params["a.weight"].T


UNEQUAL = "the batch's leaves differ in their first axis, expected the same number of rows in all:"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.ones((0, 6), np.float32), "the batch has no rows, expected at least one."),
        ({}, f"{UNEQUAL} it has no leaves"),
        (np.float32(1), f"{UNEQUAL}\n  the batch: ()"),
        ({"x": np.ones(3), "n": 1.0}, f"{UNEQUAL}\n  ['n']: ()\n  ['x']: (3,)"),
    ],
    ids=["no rows", "no leaves", "a scalar", "a scalar leaf"],
)
def test_batches_have_rows(batch: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=full_text(message)):
        BANK(project)(PARAMS, batch, [])


def test_params_have_the_leaves_that_members_change() -> None:
    """Other leaves may differ, also in their number."""
    message = (
        "the params differ from those that the bank was made for:\n  a.weight: found (4, 5), "
        "expected shape (4, 6)\nCall it with the original params, or make a bank for the new ones."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        BANK(project)({"a.weight": jnp.ones((4, 5))}, np.ones((1, 6), np.float32), ["lora"])
    with uncompiled():
        params = {**PARAMS, "more.bias": jnp.ones(3)}
        out = BANK(project)(params, np.ones((2, 6), np.float32), ["lora", None])
    assert out[:, 0].tolist() == [18, 6]


def test_each_part_of_a_result_has_rows() -> None:
    """A batch of a single row too, and a tree of results keeps its structure and dtypes."""

    def run(params: Any, x: Any) -> Any:
        return {"y": project(params, x), "count": jnp.arange(len(x), dtype=jnp.int32)}

    with uncompiled():
        out = BANK(run)(PARAMS, np.ones((1, 6), np.float32), ["lora"])
    assert out["y"].shape == (1, 4) and out["count"].dtype == jnp.int32
    message = (
        "the function returns an array of shape (4, 1) for a batch of one row, expected rows as "
        "the first axis. Take a mean over the batch outside the function."
    )
    with pytest.raises(ShapeError, match=full_text(message)), uncompiled():
        BANK(lambda p, x: project(p, x).T)(PARAMS, np.ones((2, 6), np.float32), [None, None])
