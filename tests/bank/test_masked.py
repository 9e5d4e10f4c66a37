"""Products of all rows with all members' factors, of which a mask keeps each row's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.bank import masked
from jaxmix.bank.masked import apply_by_masks
from jaxmix.bank.slots import NOTHING, Selection
from jaxmix.operators import LowRank

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def added(x: Any, stack: Any, pick: Selection) -> np.ndarray:
    start = jnp.zeros((*x.shape[:2], 4), x.dtype)
    with uncompiled():
        return np.asarray(apply_by_masks(False, False, False, start, x, (stack,), (pick,)))


@pytest.mark.parametrize("by", ["slots", "strengths"])
def test_a_product_that_overflows_stays_in_its_row(by: str) -> None:
    """Another member's inner result is infinite for every row, and the mask leaves it out."""
    huge = jnp.full((3, 2), 3e38, jnp.float32)
    stack = LowRank(jnp.stack([normal(3, 2), huge]), jnp.stack([normal(2, 4), normal(2, 4)]))
    x = jnp.full((3, 1, 3), 2.0, jnp.float32)
    if by == "slots":
        pick = Selection(jnp.array([0, 1, NOTHING], np.int32))
    else:
        pick = Selection(strengths=jnp.array([[1.0, 0], [0, 1.0], [0, 0]], jnp.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        out = added(x, stack, pick)
    np.testing.assert_allclose(out[0, 0], x[0, 0] @ stack.b[0] @ stack.a[0], rtol=1e-6)
    assert not np.isfinite(out[1]).any() and not out[2].any()


def test_long_batches_gather_each_rows_own_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice depends on tokens and members, and both forms give the same numbers."""
    stack, short, long = LowRank(normal(3, 3, 2), normal(3, 2, 4)), 10, 5000
    assert masked._is_cheaper_masked(stack, short)
    assert not masked._is_cheaper_masked(stack, long)
    single = jax.tree.map(lambda x: x[:1], stack)
    assert masked._is_cheaper_masked(single, long)
    x, pick = normal(2, short, 3), Selection(jnp.array([2, NOTHING], np.int32))
    by_mask = added(x, stack, pick)
    monkeypatch.setattr(masked, "_GATHERED", 0)
    by_gather = added(x, stack, pick)
    np.testing.assert_allclose(by_gather, by_mask, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_mask[0], x[0] @ stack.b[2] @ stack.a[2], atol=1e-5)
    assert not by_gather[1].any()
