"""Invalid factors of all families get a message, not an error of JAX or a silent result."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import ShapeError
from jaxmix.families import (
    BOFT,
    HRA,
    OFT,
    AdaMSS,
    DiagOFT,
    ExpertLoRA,
    FRoD,
    KaSA,
    LoHa,
    LoKr,
    LoRA,
    Normed,
    SuperTuning,
    UniLoRA,
    VBLoRA,
)

from ..messages import full_text
from ..uncompiled import uncompiled
from .crowd import MODULES, UPDATES, base

ones: Any = np.ones


def shapes_near(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Shapes that a leaf of this shape might have by mistake."""
    if not shape:
        return {(2,), (1, 1)}
    longer, taller = (*shape[:-1], shape[-1] + 1), (shape[0] + 1, *shape[1:])
    shapes = {(), (3,), (0,), shape[:-1], shape[::-1], (*shape, 1), (1, *shape), (2, *shape)}
    return (shapes | {longer, taller, (0, *shape[1:]), (1,) * len(shape), (2, 3, 4, 5, 6)}) - {
        shape
    }


@pytest.mark.parametrize("site", UPDATES)
def test_leaves_of_other_shapes(site: str) -> None:
    """Either `misfit` returns a message, or the update runs and keeps the shapes."""
    leaves, treedef = jax.tree.flatten(UPDATES[site])
    params, shape, passed = base([site], np.float32), MODULES[site].matrix, 0
    for i, leaf in enumerate(leaves):
        for other_shape in sorted(shapes_near(np.shape(leaf))):
            zeros = np.zeros(other_shape, jnp.result_type(leaf) if np.ndim(leaf) else np.float32)
            update = jax.tree.unflatten(treedef, [*leaves[:i], zeros, *leaves[i + 1 :]])
            assert repr(Adapter({site: update}))
            if update.misfit(shape) is None and np.ndim(leaf) and passed < 3:
                passed += 1
                with uncompiled():
                    out = jaxmix.compose(params, Adapter({site: update}))
                assert {n: x.shape for n, x in out.items()} == {
                    n: x.shape for n, x in params.items()
                }
            # A scale that is not a number never passes.
            assert np.ndim(leaf) or update.misfit(shape) is not None


@pytest.mark.parametrize("site", UPDATES)
def test_messages_need_only_shapes(site: str) -> None:
    """Sizes and messages need no numbers, and updates need no hash or equality."""
    update = UPDATES[site]
    outline = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), update)
    assert outline.size() == update.size() and update.size() != ""
    adapter = Adapter({site: outline}, 0.5, "mine")
    assert (
        repr(adapter) == f"mine: {adapter.summary()}" == repr(Adapter({site: update}, 0.5, "mine"))
    )
    assert update != dataclasses.replace(update) and hash(update) is not None


def misfit_of(update: Any, shape: tuple[int, int]) -> str:
    """The message of `misfit`, which must not be None."""
    message = update.misfit(shape)
    assert message is not None
    return message


def changed(site: str, **fields: Any) -> Any:
    """An update of the crowd with other fields."""
    return dataclasses.replace(UPDATES[site], **fields)


def test_positions_out_of_range() -> None:
    """Positions are checked, because JAX would clamp or drop those that are out of range."""
    theta, scales = ones(3), (ones((1, 2)), ones((2, 1)))
    rows, cols = np.array([[0, 3]]), np.zeros((2, 1), int)
    assert misfit_of(UniLoRA(theta, rows, cols, *scales), (2, 2)) == (
        "unilora_indices_A go from 0 to 3, expected from 0 to 2"
    )
    bank, pair = ones((4, 1)), lambda n: (ones((1, 2, 1)), np.full((1, 2, 2), n, np.uint8))
    factor_b = (ones((2, 1, 1)), np.zeros((2, 1, 2), np.uint8))
    assert VBLoRA(pair(3), factor_b, bank, topk=2).misfit((2, 2)) is None
    assert misfit_of(VBLoRA(pair(4), factor_b, bank, topk=2), (2, 2)) == (
        "vblora_logits_A_topk_indices go from 4 to 4, expected from 0 to 3"
    )
    logits = (ones((1, 2, 4)),), (ones((2, 1, 4)),)
    assert misfit_of(VBLoRA(*logits, bank, topk=5), (2, 2)) == (
        "vblora_logits_A: topk is 5, expected at most 4, the vectors of the bank"
    )
    assert misfit_of(FRoD(np.eye(2), ones(1), np.array([[0], [2]]), ones(2)), (3, 2)) == (
        "frod_s_indices reach row 0 and column 2, expected rows below 2 and columns below 2"
    )
    scalar = ones((1, 1))
    assert misfit_of(
        AdaMSS((scalar, scalar), (scalar, scalar), scalar, np.array([1, 1])), (2, 1)
    ) == ("the groups' rows repeat an index or exceed 1, expected each index from 0 to 1 once")
    orders: Any = np.array([[0, 1, 2, 4]])
    assert misfit_of(BOFT(ones((1, 2, 2, 2)), orders=orders), (3, 4)) == (
        "orders repeat an index or exceed 3, expected each index from 0 to 3 once"
    )


def test_positions_beyond_32_bits() -> None:
    """Without 64-bit types JAX would truncate them."""
    far = SuperTuning(ones(1), np.array([2**31]))
    assert misfit_of(far, (70_000, 40_000)) == (
        "supertuning_indices reach 2147483648, which does not fit 32 bits. Call "
        "jax.config.update('jax_enable_x64', True)"
    )
    with jax.enable_x64(True):
        assert far.misfit((70_000, 40_000)) is None


def test_scales_that_are_arrays() -> None:
    """Scales with an axis, as stacked adapters have outside `vmap`, are refused."""
    pair = ones(2)
    assert misfit_of(changed("LoRA0", scale=pair), (8, 16)).startswith("scale has shape (2,)")
    for kind, name in ((LoHa, "scale"), (LoKr, "scale"), (KaSA, "scale")):
        update = UPDATES[f"{kind.__name__}0"]
        assert misfit_of(dataclasses.replace(update, **{name: pair}), (8, 16)).startswith(
            f"{name} has"
        )
    tail = "has shape (2,), expected () from weight (8, 16)"
    assert misfit_of(OFT(ones((8, 1)), eps=pair), (8, 16)) == f"eps {tail}"
    assert misfit_of(DiagOFT(ones((4, 2, 2)), bound=pair), (8, 16)) == f"the bound {tail}"
    assert misfit_of(changed("Normed0", eps=pair), (8, 16)) == f"the eps of dora_scale {tail}"
    lora = LoRA(ones((1, 16)), ones((8, 1)), pair)
    assert misfit_of(Normed(lora, ones(8)), (8, 16)).startswith("scale has shape (2,)")


def test_factors_with_other_axes() -> None:
    """Factors with another number of axes get a message; unpacking their shapes once failed."""
    stack = LoKr((ones((1, 2, 2)),), (ones((4, 8)),), 1.0)
    assert "lokr_w1 has shape (1, 2, 2)" in misfit_of(stack, (8, 16))
    flat = ExpertLoRA(ones((2, 3)), ones((2, 4, 1)), 1.0)
    message = "lora_A has shape (2, 3), expected (experts, r, in) from weight (2, 12)"
    assert misfit_of(flat, (2, 12)) == message
    with pytest.raises(
        ShapeError,
        match=full_text(
            f"factors that do not fit the params:\n  a: {message}\n"
            "Was the adapter trained on another model, or on a base of another size?"
        ),
    ):
        jaxmix.compose({"a.weight": ones((2, 4, 3), np.float32)}, Adapter({"a": flat}))


def test_reflection_at_a_zero_vector() -> None:
    """A reflection at a zero vector is the identity, where PEFT divides by zero."""
    u: Any = np.array([[3.0, 0.0], [0.0, 0.0]])
    w = np.array([[1.0, 2.0]], np.float32)
    both, reflection = (
        jaxmix.compose({"a.weight": w}, Adapter({"a": HRA(x)}))["a.weight"] for x in (u, u[:, :1])
    )
    np.testing.assert_array_equal(both, reflection)
