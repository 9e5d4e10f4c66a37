"""Law 5, except traces: strength 0 is the identity, and 1 is the checkpoint's map."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, Replace

from .draws import KINDS, MAKERS, Module, adapters, draw_update, few, normal, tree, trees
from .running import composed, error
from .truth import fold_tree

MODULE = Module("linear", (6, 8), True)
PARAMS = tree({"a": MODULE}, 0)
# With this seed Replace changes both the weight and the bias, and LoRA has a bias.
UPDATES = {kind: draw_update(kind, MODULE, 4) for kind in MAKERS}


def at(kind: str, strength: Any) -> Adapter:
    """The update of a kind at a strength."""
    return Adapter({"a": UPDATES[kind]}, strength, kind)


@few()
@given(data=st.data(), drawn=trees(max_modules=2), s=st.floats(-2, 2))
def test_strength_of_a_mix_multiplies_its_parts(data: st.DataObject, drawn: Any, s: float) -> None:
    """``s * mix(a, b)`` is ``mix(s * a, s * b)``, and so is ``strength=``."""
    modules, params = drawn
    a, b = data.draw(adapters(modules, count=2))
    truth = fold_tree(params, [s * a, s * b])
    for mixed in (s * jaxmix.mix(a, b), jaxmix.mix(a, b, strength=s)):
        assert error(composed(params, mixed), truth) < 1e-11


@pytest.mark.parametrize("terms", [None, 5])
def test_rotations_stay_rotations(terms: int | None) -> None:
    """OFT at any strength keeps the norms of rows, and −s inverts s."""
    oft = OFT(normal(np.random.default_rng(0), 2, 6, std=0.02 if terms else 0.5), terms=terms)
    tolerance = 1e-3 if terms else 1e-12
    base = PARAMS["a.weight"]
    for s in (0.5, 1.0, 1.7):
        composed_weight = composed(PARAMS, Adapter({"a": oft}, s))
        lengths = np.linalg.norm(composed_weight["a.weight"], axis=1) / np.linalg.norm(base, axis=1)
        np.testing.assert_allclose(lengths, 1, atol=tolerance)
        assert np.abs(composed_weight["a.weight"] - base).max() > 1e-3
        restored = composed(composed_weight, Adapter({"a": oft}, -s))
        np.testing.assert_allclose(restored["a.weight"], base, atol=tolerance)


def slopes(run: Any, at: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient by central differences."""
    steps = step * np.eye(len(at))
    return np.array([(run(at + h) - run(at - h)) / (2 * step) for h in steps])


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_gradients_of_strengths(start: float) -> None:
    """Gradients equal differences of the naive fold, at strength 0 too."""
    kinds = ("LoHa", "OFT", "DoRA")
    weights = {n: normal(np.random.default_rng(1), *x.shape) for n, x in PARAMS.items()}
    parts = [
        Adapter({"a": draw_update(k, MODULE, 4 + i)}, name=str(i)) for i, k in enumerate(kinds)
    ]

    def loss(strengths: Any) -> Any:
        out = jaxmix.mix(*parts, strength=strengths)(PARAMS)
        return sum(jnp.sum(weights[name] * out[name]) for name in weights)

    def truth(strengths: np.ndarray) -> float:
        out = fold_tree(PARAMS, [p * float(s) for p, s in zip(parts, strengths, strict=True)])
        return float(sum((weights[name] * out[name]).sum() for name in weights))

    start_values = np.full(len(kinds), start)
    with jax.enable_x64(True):
        gradients = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(start_values)))
    expected = slopes(truth, start_values)
    np.testing.assert_allclose(gradients, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(expected).max() > 1e-3


def test_gradients_of_the_base() -> None:
    """Gradients by the base go through DoRA's norm too, on a convolution and an embedding."""
    for kind in ("conv2d", "embedding"):
        module = KINDS[kind]
        params = tree({"a": module}, 3)
        mixed = [Adapter({"a": draw_update(k, module, 5)}, 0.8, k) for k in ("OFT", "DoRA", "LoKr")]
        direction = normal(np.random.default_rng(4), *module.shape)

        def truth(
            t: np.ndarray, p: Any = params, m: Any = mixed, direction: Any = direction
        ) -> float:
            return float(
                fold_tree({"a.weight": p["a.weight"] + t[0] * direction}, m)["a.weight"].sum()
            )

        with jax.enable_x64(True):
            grad = jax.grad(
                lambda w, m=mixed: jaxmix.compose({"a.weight": w}, m)["a.weight"].sum()
            )(jnp.asarray(params["a.weight"]))
        slope = (np.asarray(grad) * direction).sum()
        np.testing.assert_allclose(slope, slopes(truth, np.zeros(1))[0], rtol=1e-6)


def test_replaced_leaves_have_no_gradient() -> None:
    """At strength 1 the replaced leaf does not contribute."""
    replacing = Adapter({"a": Replace(np.ones((6, 8)))})
    with jax.enable_x64(True):
        grad = jax.grad(lambda w: jaxmix.compose({"a.weight": w}, replacing)["a.weight"].sum())(
            jnp.asarray(PARAMS["a.weight"])
        )
    assert not np.asarray(grad).any()
