"""The base class of families, and the maps of chains at one site."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import OFT, LoRA, Replace, Together, Update
from jaxmix.families.base import joint_flag, maps, mismatch

from ..messages import full_text

pytestmark = pytest.mark.usefixtures("no_compiling")

ONE = jnp.ones(())


def test_default_maps_are_the_identity() -> None:
    """A family without maps of its own changes nothing."""

    class Nothing(Update):
        pass

    nothing, base = Nothing(), Base(None, (2, 3))
    assert nothing.weight_map(base, ONE).flops() == nothing.bias_map(base, ONE).flops() == 0
    assert (nothing.has_weight, nothing.has_bias) == (True, False)
    assert not (nothing.reads_base or nothing.is_base_side or nothing.transposed)
    assert nothing.rebased(base, ONE) is base and nothing.with_transposed_weight() is nothing
    for method in (lambda: nothing.misfit((2, 3)), nothing.size):
        with pytest.raises(NotImplementedError):
            method()


class Case:
    """DoRA in a chain with other kinds that change the bias, with numbers that suit hand checks."""

    w0 = jnp.array([[3.0, 4.0], [0.0, 2.0]])  # rows of norm 5 and 2
    base = Base(w0, (2, 2), jnp.array([[10.0], [20.0]]))
    c = (2.0, 0.5)
    dora = LoRA(jnp.zeros((1, 2)), jnp.zeros((2, 1)), 1.0, magnitude=jnp.array([10.0, 1.0]))
    lora = LoRA(jnp.zeros((1, 2)), jnp.zeros((2, 1)), 0.5, bias=jnp.array([2.0, 4.0]))
    trained = Replace(bias=jnp.array([1.0, 3.0]))

    @classmethod
    def bias(cls, *chain: Any) -> list[float]:
        """The bias after a chain of updates, each at strength 1 or at a given strength."""
        pairs = [item if isinstance(item, tuple) else (1.0, item) for item in chain]
        bias = cls.base.bias
        assert bias is not None
        for item in maps(pairs, cls.base, "bias"):
            bias = item(bias)
        return bias[:, 0].tolist()


def test_dora_scales_biases_added_before() -> None:
    """As in PEFT's forward, which subtracts the base's bias, scales, and adds it again."""
    assert Case.bias(Case.dora) == [10.0, 20.0]
    assert Case.bias(Case.lora) == [11.0, 22.0]
    assert Case.bias(Case.lora, Case.dora) == [10 + 2 * 1.0, 20 + 0.5 * 2]
    assert Case.bias(Case.dora, Case.lora) == [11.0, 22.0]
    assert Case.bias(Case.lora, (0.5, Case.dora)) == [10 + 1.5, 20 + 1.5]
    assert not Case.dora.has_bias


def test_trained_bias_belongs_to_the_base() -> None:
    """DoRA does not scale a trained bias of the same adapter, as in PEFT, or of an earlier one."""
    together = Together((Case.trained, Case.dora))
    assert together.has_bias and together.reads_base
    assert Case.bias(together) == [1.0, 3.0]
    assert Case.bias(Case.trained, Case.dora) == [1.0, 3.0]
    assert Case.bias(Case.trained, Case.lora, Case.dora) == [1 + 2 * 1.0, 3 + 0.5 * 2]
    assert Case.bias(together, Case.dora, Case.lora, Case.dora) == [3.0, 4.0]
    assert Case.bias((0.5, Case.trained), Case.dora) == [5.5, 11.5]


def test_dora_reads_a_replaced_base() -> None:
    """A replaced weight determines DoRA's norm; other updates do not change it."""
    replacing = Replace(weight=jnp.array([[6.0, 8.0], [0.0, 1.0]]))
    for chain in ([replacing, Case.dora], [Together((replacing,)), Case.dora]):
        dora_map = maps([(1.0, item) for item in chain], Case.base)[-1]
        assert jnp.diag(dora_map.left.dense()).tolist() == [1.0, 1.0]
    after_oft = maps([(1.0, OFT(jnp.ones((1, 1)))), (1.0, Case.dora)], Case.base)[-1]
    assert jnp.diag(after_oft.left.dense()).tolist() == [2.0, 0.5]
    without_matrix = Base(None, (2, 2))
    assert replacing.rebased(without_matrix, ONE).matrix is None
    assert Case.trained.rebased(Case.base, ONE).matrix is Case.w0


def test_dora_requires_the_bias() -> None:
    with pytest.raises(
        ValueError,
        match=full_text(
            "a map of a weight (2, 2) reads the base's bias, found None. Pass Base.bias to updates "
            "whose reads_base is true."
        ),
    ):
        Case.dora.bias_map(Base(Case.w0, (2, 2)), ONE)


def test_flags_of_updates_are_combined() -> None:
    """One update that knows it decides; an unknown flag is not overruled by False."""
    orders = ([True, False, None], [None, False, True])
    assert [joint_flag(flags) for flags in orders] == [True, True]
    assert joint_flag(iter([None, False])) is None and joint_flag([False, False]) is False


def test_sizes_by_name_must_agree() -> None:
    """The first factor with the right number of axes determines them; all misfits are listed."""
    z = jnp.zeros
    shapes = {"a": (z((4, 5)), ("r", 5)), "b": (z((6, 4)), (6, "r")), "none": (None, (9, 9))}
    assert mismatch(shapes, (6, 5)) is None
    shapes |= {"b": (z((6, 3)), (6, "r")), "c": (z(4), (7,)), "scale": (2.0, ())}
    assert mismatch(shapes, (6, 5)) == (
        "b has shape (6, 3), expected (6, 4); c has shape (4,), expected (7,) from weight (6, 5)"
    )
    with_first_misshaped = {"a": (z((4, 5, 1)), ("r", 5)), "b": (z((6, 3)), (6, "r"))}
    assert mismatch(with_first_misshaped, (6, 5)) == (
        "a has shape (4, 5, 1), expected (r, 5) from weight (6, 5)"
    )


def test_default_base_is_that_of_all_updates() -> None:
    """A base-side update rebases only the leaves that are present and that it changes."""

    class Doubles(Replace):
        is_base_side = True  # pyright: ignore

    weight, bias = jnp.ones((2, 3)), jnp.ones((2, 1))
    new = Doubles(2 * weight, None)
    later = new.rebased(Base(weight, (2, 3), bias, is_transposed=True), ONE)
    np.testing.assert_array_equal(later.matrix, 2 * weight)
    assert later.bias is bias and later.is_transposed
    assert new.rebased(Base(None, (2, 3)), ONE).matrix is None
