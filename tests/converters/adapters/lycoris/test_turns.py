"""Updates that multiply the weight, by LyCORIS's formulas in NumPy."""

from typing import Any

import numpy as np
import pytest

from jaxmix import Adapter, compose
from jaxmix.converters.adapters.lycoris.turns import diag_oft, glora, ia3, scale_of
from jaxmix.errors import ShapeError, UnsupportedError
from jaxmix.families import BOFT, IA3, DiagOFT

from ....messages import full_text
from ....uncompiled import uncompiled

WEIGHT = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def drawn(*shape: int, seed: int = 0) -> Any:
    """Returns random numbers in float32."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def applied(update: Any) -> np.ndarray:
    """Applies an update to the weight."""
    with uncompiled():
        return np.asarray(compose({"q.weight": WEIGHT}, Adapter({"q": update}))["q.weight"])


def turned(block: np.ndarray) -> np.ndarray:
    """Returns LyCORIS's rotation, the transpose of ``(I + Q)(I − Q)⁻¹``."""
    skew, identity = block - block.T, np.eye(len(block))
    return ((identity + skew) @ np.linalg.inv(identity - skew)).T


@pytest.mark.parametrize("alpha", [None, 0.0, 0.01])
def test_diag_oft_turns_the_outputs(alpha: float | None) -> None:
    """Alpha times the number of outputs bounds the generator; 0 and none are no bound."""
    blocks = drawn(2, 3, 3).astype(np.float64)
    factors = {"oft_blocks": drawn(2, 3, 3), "rescale": drawn(6, 1, 1)}
    if alpha is not None:
        factors["alpha"] = np.asarray(alpha, np.float32)
    if alpha:
        norm = np.linalg.norm(blocks - blocks.swapaxes(1, 2))
        assert norm > alpha * 6
        blocks = blocks * (np.float32(alpha) * 6 / norm)
    rows = np.concatenate([turned(b) @ WEIGHT[3 * i : 3 * i + 3] for i, b in enumerate(blocks)])
    expected = drawn(6, 1, 1)[:, 0] * rows
    np.testing.assert_allclose(applied(diag_oft(factors)), expected, rtol=1e-4, atol=1e-5)


def test_each_stage_of_boft_pairs_halves_further_apart() -> None:
    """Each row of the orders is a permutation of all outputs."""
    update: Any = diag_oft({"oft_blocks": drawn(2, 2, 2, 2)})
    assert isinstance(update, BOFT) and update.on_output
    orders = np.stack(list(np.asarray(update.orders)))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(4), (2, 1)))
    np.testing.assert_array_equal(orders[0], np.arange(4))
    assert not np.array_equal(orders[1], np.arange(4))


def test_ia3_is_one_more_than_its_numbers() -> None:
    """On inputs it is an IA3; on outputs the bias must not change, so it is a rescaling."""
    outputs = ia3({"weight": drawn(6), "on_input": np.asarray(0)})
    inputs = ia3({"weight": drawn(1, 4, 1, 1), "on_input": np.asarray(1)})
    assert isinstance(outputs, DiagOFT) and isinstance(inputs, IA3)
    assert inputs.axes == 2
    np.testing.assert_allclose(applied(outputs), (1 + drawn(6))[:, None] * WEIGHT, rtol=1e-6)
    by_input = ia3({"weight": drawn(4), "on_input": np.asarray(1)})
    np.testing.assert_allclose(applied(by_input), WEIGHT * (1 + drawn(4)), rtol=1e-6)


def test_glora_scales_both_products() -> None:
    """``W' = W + γ (W A₁A₂ + B₁B₂)``."""
    factors = {
        "a1.weight": drawn(4, 2),
        "a2.weight": drawn(2, 4),
        "b1.weight": drawn(6, 2),
        "b2.weight": drawn(2, 4, seed=1),
        "alpha": np.asarray(3.0, np.float32),
    }
    expected = WEIGHT + 1.5 * (
        WEIGHT @ factors["a1.weight"] @ factors["a2.weight"]
        + factors["b1.weight"] @ factors["b2.weight"]
    )
    np.testing.assert_allclose(applied(glora(factors)), expected, rtol=1e-4, atol=1e-5)
    shapes = "a1.weight (4, 2), a2.weight (2, 4), b1.weight (6, 2), b2.weight (2, 4), alpha ()"
    message = f"{shapes}, bm.weight (1,): bm.weight, which no version of LyCORIS can write"
    with pytest.raises(UnsupportedError, match=full_text(message)):
        glora({**factors, "bm.weight": drawn(1)})


@pytest.mark.parametrize(
    ("tensors", "rank", "expected"),
    [
        ({}, 2, 1.0),
        ({"alpha": 3.0}, 2, 1.5),
        ({"alpha": 0.0}, 2, 1.0),  # means the rank
        ({"alpha": 3.0}, None, 1.0),  # of dense factors
        ({"alpha": 3.0, "scale": 0.25}, 2, 0.25),
        ({"scale": 0.0}, 2, 0.0),
    ],
)
def test_scale_is_stated_or_alpha_over_rank(
    tensors: dict[str, float], rank: int | None, expected: float
) -> None:
    """A stated scale counts, whatever alpha is."""
    arrays: Any = {name: np.asarray([number]) for name, number in tensors.items()}
    assert scale_of(arrays, rank) == expected
    for name in tensors:
        wrong = {name: np.ones(2)}
        message = full_text(f"{name} (2,), expected {name} with one element")
        with pytest.raises(ShapeError, match=message):
            scale_of(wrong, rank)
