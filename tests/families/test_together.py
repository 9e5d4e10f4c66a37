"""Several updates of one adapter at one site."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import LoRA, Rebase, Replace, Together
from jaxmix.families.together import parts_of

pytestmark = pytest.mark.usefixtures("no_compiling")


def test_together_combines_properties_of_its_parts() -> None:
    """A property of one part is a property of the site."""
    z = jnp.zeros
    bias, lora = Replace(bias=z(6)), LoRA(z((3, 9)), z((6, 3)), 1.0)
    transposed = dataclasses.replace(lora, transposed=True)
    dora = dataclasses.replace(lora, magnitude=z(6))
    for part, expected in (
        (bias, (False, True, False, False)),
        (lora, (True, False, False, False)),
        (transposed, (True, False, True, False)),
        (dora, (True, False, False, True)),
    ):
        for update in (Together((part,)), Together((part, Replace()))):
            stated = update.has_weight, update.has_bias, update.transposed, update.reads_base
            assert stated == expected
    assert Together((lora, bias)).has_bias and Together((bias, lora)).has_weight


W = jnp.array([[3.0, 4.0, 0.0], [0.0, 2.0, 1.0]])
BASE = Base(W, (2, 3), jnp.array([[1.0], [2.0]]))


def test_parts_are_composed_in_order() -> None:
    """For the weight and for the bias, each part at the strength of the whole."""
    half, ones = jnp.asarray(0.5), Replace(jnp.ones((2, 3)), jnp.ones(2))
    threes = Replace(jnp.full((2, 3), 3.0), jnp.full(2, 3.0))
    both, reverse = Together((ones, threes)), Together((threes, ones))
    np.testing.assert_allclose(both.weight_map(BASE, half)(W), (W + 1) / 4 + 1.5)
    np.testing.assert_allclose(reverse.weight_map(BASE, half)(W), (W + 3) / 4 + 0.5)
    assert BASE.bias is not None
    bias = both.bias_map(BASE, half)(BASE.bias)
    np.testing.assert_allclose(bias, (BASE.bias + 1) / 4 + 1.5)


def test_nothing_together_is_the_identity() -> None:
    one = jnp.ones(())
    nothing = Together(())
    assert nothing.weight_map(BASE, one)(W) is W and nothing.rebased(BASE, one) is BASE
    assert nothing.misfit((2, 3)) is None and nothing.transposed is False
    assert not nothing.has_weight and nothing.keeps_tie


def test_later_parts_read_the_base_that_earlier_ones_write() -> None:
    """So do later updates: the base after all parts."""
    one = jnp.ones(())
    stored = Rebase(2 * W)
    dora = LoRA(jnp.zeros((1, 3)), jnp.zeros((2, 1)), 1.0, magnitude=jnp.array([10.0, 1.0]))
    before, after = Together((dora, stored)), Together((stored, dora))
    assert before.is_base_side and before.reads_base
    for update in (before, after):
        np.testing.assert_array_equal(update.rebased(BASE, one).matrix, 2 * W)
    norms = np.linalg.norm(W, axis=1)
    scales = [np.diag(x.weight_map(BASE, one).left.dense()) for x in (before, after)]
    np.testing.assert_allclose(scales[0], np.array([10.0, 1.0]) / norms, rtol=1e-6)
    np.testing.assert_allclose(scales[1], np.array([10.0, 1.0]) / (2 * norms), rtol=1e-6)


def test_first_part_that_does_not_fit_is_reported() -> None:
    lora = LoRA(jnp.zeros((1, 4)), jnp.zeros((2, 1)), 1.0)
    both = Together((Replace(bias=jnp.ones(2)), lora, Replace(jnp.ones((5, 5)))))
    assert both.misfit((2, 3)) == "lora_A has shape (1, 4), expected (1, 3) from weight (2, 3)"
    assert parts_of(both) == both.parts and parts_of(lora) == (lora,)


def test_saved_weights_of_all_parts_are_transposed() -> None:
    both = Together((Replace(W.T), Replace(bias=jnp.ones(2)))).with_transposed_weight()
    assert both.misfit((2, 3)) is None
    np.testing.assert_array_equal(both.parts[0].weight, W)  # pyright: ignore
