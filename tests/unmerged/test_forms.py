"""The forms of a product of tokens and a weight, and the choice of the cheapest."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import AffineMap, shift
from jaxmix.operators import Dense, Diagonal, Identity, Kronecker, LowRank, Operator, Zero, add
from jaxmix.operators.backends import TPU
from jaxmix.unmerged import forms
from jaxmix.unmerged.costs import CPU, of_backend
from jaxmix.unmerged.forms import chosen_here, product_costs, thin_and_heavy
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled


def normal(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


LOW = LowRank(normal(16, 2), normal(2, 12))
KRONECKER = Kronecker(normal(2, 3), normal(8, 4))
DENSE = Dense(normal(16, 12))


def weight(*terms: Operator, left: Operator | None = None) -> Weight:
    delta: Operator = Zero(16, 12)
    for term in terms:
        delta = add(delta, term)
    step = shift(delta) if left is None else AffineMap(left, Identity(12), delta)
    return Weight(normal(16, 12), step, (-2,), (-1,))


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (weight(LOW), ["factored", "dense"]),
        (weight(DENSE), ["factored", "dense"]),
        (weight(LOW, DENSE), ["factored", "partly dense", "dense"]),
        (weight(LOW, KRONECKER), ["factored", "view", "partly dense", "dense"]),
        (weight(LOW, KRONECKER, left=Diagonal(normal(16))), ["factored", "dense"]),
    ],
    ids=["low rank", "dense", "both", "Kronecker", "scaled"],
)
def test_a_weight_has_the_forms_of_its_terms(own: Weight, names: list[str]) -> None:
    """The factored form is first, so it is taken if another one costs the same."""
    assert list(product_costs(own, 3, False)) == names


def test_thin_and_heavy_terms_are_all_terms() -> None:
    with uncompiled():
        own = weight(LOW, DENSE, KRONECKER)
        thin, heavy = thin_and_heavy(own)
        assert isinstance(thin.map.shift, LowRank)
        both = thin.map.shift.dense() + heavy.map.shift.dense()
        np.testing.assert_allclose(both, own.map.shift.dense(), rtol=1e-5)
    thin, heavy = thin_and_heavy(weight())
    assert isinstance(thin.map.shift, Zero) and isinstance(heavy.map.shift, Zero)


def test_the_form_depends_on_tokens_and_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tokens share a dense weight; on a TPU it costs more to write than a view to read."""
    own = weight(LOW, KRONECKER)
    assert [chosen_here(own, tokens) for tokens in (1, 1000)] == ["factored", "dense"]
    monkeypatch.setattr(forms, "on_this_platform", lambda: of_backend(TPU))
    assert [chosen_here(own, tokens) for tokens in (3, 1000)] == ["view", "dense"]
    costs = product_costs(own, 3, False)
    assert costs["dense"](CPU) < costs["view"](CPU)
