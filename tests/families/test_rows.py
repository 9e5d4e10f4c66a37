"""Updates cut to some rows of a weight, compared with the full update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.families import (
    BOFT,
    DiagOFT,
    ExpertLoRA,
    GLoRA,
    LoKr,
    LoRA,
    Normed,
    Replace,
    Update,
)
from jaxmix.families.rows import Rows, expert_of, rows_of

from .module import Module
from .table import SAMPLES

MODULES = {"linear": Module("linear", (12, 8), True), "conv": Module("conv", (12, 4, 3), True)}
# These families mix rows, or read all rows of the base, so they can't be cut.
NEEDS_ALL_ROWS = {"KaSA", "DEFT", "PEANuT", "FRoD"}
PARTS = {"q": slice(0, 4), "k": slice(4, 8), "v": slice(8, 12)}
CASES = [(family, "linear") for family in SAMPLES if family != "ExpertLoRA"]
CASES += [
    pytest.param(family, "conv", marks=pytest.mark.thorough)
    for family in SAMPLES
    if family != "ExpertLoRA"
]


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_parts_are_the_rows_of_the_full_update(family: str, kind: str) -> None:
    """Composed with the parts of a weight and bias, they give the parts of the full result."""
    module = MODULES[kind]
    rng = np.random.default_rng(3)
    update = SAMPLES[family].draw(rng, module)
    cut = {name: rows_of(update, part, module.matrix) for name, part in PARTS.items()}
    assert (None in cut.values()) == (family in NEEDS_ALL_ROWS), cut
    updates = {name: cut_update for name, cut_update in cut.items() if cut_update is not None}
    with jax.enable_x64(True):
        weight, bias = rng.normal(size=module.shape), rng.normal(size=12)
        params = {"qkv.weight": weight, "qkv.bias": bias}
        full = jaxmix.compose(params, 0.7 * jaxmix.Adapter({"qkv": update}))
        for name in updates:
            params |= {f"{name}.weight": weight[PARTS[name]], f"{name}.bias": bias[PARTS[name]]}
        out = jaxmix.compose(params, 0.7 * jaxmix.Adapter(updates))
    for name in updates:
        for leaf in ("weight", "bias"):
            expected = full[f"qkv.{leaf}"][PARTS[name]]
            np.testing.assert_allclose(out[f"{name}.{leaf}"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["input", "numbers", "vectors"])
def test_other_forms_of_glora(form: str) -> None:
    """Factors of inputs and numbers are not cut; each part gets its entries of a vector."""
    rng = np.random.default_rng(4)
    update = {
        "input": GLoRA((rng.normal(size=(8, 2)), rng.normal(size=(2, 8))), on_input=True),
        "numbers": GLoRA((rng.normal(size=1),), (rng.normal(size=1),), (), (rng.normal(size=1),)),
        "vectors": GLoRA((rng.normal(size=(12, 1)),), (), (), (), (rng.normal(size=12),)),
    }[form]
    check_parts(update)


def test_butterflies_of_outputs() -> None:
    """LyCORIS's BOFT mixes outputs, so it is cut only between blocks, and without a rescale."""
    generator = np.random.default_rng(5).normal(size=(1, 3, 4, 4))
    check_parts(BOFT(generator, on_output=True))
    rescaled = BOFT(generator, np.ones(12), on_output=True)
    assert rows_of(rescaled, PARTS["q"], (12, 8)) is None
    shuffled = BOFT(generator, orders=np.arange(12)[None], on_output=True)
    assert rows_of(shuffled, PARTS["q"], (12, 8)) is None


def check_parts(update: Update) -> None:
    """Checks that the parts of an update of a weight (12, 8) give the parts of its result."""
    rng = np.random.default_rng(6)
    weight, bias = rng.normal(size=(12, 8)), rng.normal(size=12)
    params, updates = {"qkv.weight": weight, "qkv.bias": bias}, {}
    for name, part in PARTS.items():
        updates[name] = rows_of(update, part, (12, 8))
        params |= {f"{name}.weight": weight[part], f"{name}.bias": bias[part]}
    with jax.enable_x64(True):
        out = jaxmix.compose(params, 0.7 * jaxmix.Adapter({"qkv": update, **updates}))
    for name, part in PARTS.items():
        for leaf in ("weight", "bias"):
            expected = out[f"qkv.{leaf}"][part]
            np.testing.assert_allclose(out[f"{name}.{leaf}"], expected, rtol=1e-9, atol=1e-12)


def test_a_product_whose_blocks_are_cut() -> None:
    """Rows 2:5 of a LoKr whose blocks have 4 rows contain no complete block."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 2)), rng.normal(size=(4, 4))
    cut = rows_of(LoKr((x,), (y,), 0.5), slice(2, 5), (12, 8))
    assert isinstance(cut, Rows) and cut.size() == "LoKr full, rows 2:5"
    with jax.enable_x64(True):
        out = jaxmix.compose({"k.weight": np.zeros((3, 8))}, jaxmix.Adapter({"k": cut}))
    np.testing.assert_allclose(out["k.weight"], 0.5 * np.kron(x, y)[2:5], rtol=1e-12)


def test_rotations_are_cut_between_blocks_only() -> None:
    """LyCORIS's OFT rotates blocks of outputs, so a part that cuts a block is None."""
    update = DiagOFT(np.random.default_rng(0).normal(size=(3, 4, 4)), side="out")
    assert rows_of(update, slice(4, 12), (12, 8)) is not None
    assert rows_of(update, slice(4, 10), (12, 8)) is None


def test_norms_of_inputs_need_all_rows() -> None:
    """Norms by input sum over all outputs, so no part can compute them."""
    normed = SAMPLES["Normed"].draw(np.random.default_rng(0), MODULES["linear"])
    assert isinstance(normed, Normed)
    by_input = Normed(normed.update, np.ones(8), axis="in")
    assert rows_of(by_input, PARTS["q"], (12, 8)) is None
    embedding = LoRA(np.ones((1, 8)), np.ones((12, 1)), 1.0, np.ones(8), embedding=True)
    assert rows_of(embedding, PARTS["q"], (12, 8)) is None


@pytest.mark.parametrize("in_first", [False, True])
def test_an_expert_of_a_stack(in_first: bool) -> None:
    """The LoRA of one expert adds what the stack of experts adds to its matrix."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 4, 2))
    update = ExpertLoRA(a, b, 0.5, in_first=in_first)
    for number in range(3):
        expert = expert_of(update, number)
        assert isinstance(expert, LoRA)
        delta = 0.5 * b[number] @ a[number]
        actual = expert.scale * np.asarray(expert.b) @ np.asarray(expert.a)
        np.testing.assert_allclose(actual, delta.T if in_first else delta)
    saved = expert_of(Replace(weight=jnp.arange(24.0).reshape(3, 4, 2)), 2)
    assert isinstance(saved, Replace) and saved.weight is not None
    assert saved.weight.tolist() == jnp.arange(16.0, 24.0).reshape(4, 2).tolist()
    assert expert_of(LoRA(a[0], b[0], 1.0), 0) is None


def test_rows_that_do_not_fit() -> None:
    """The message names the rows, or is the full update's message."""
    update = Rows(LoKr((np.ones((3, 2)),), (np.ones((4, 4)),), 1.0), 2, 5, 12)
    assert update.misfit((4, 8)) == (
        "the weight has 4 rows, expected 3, rows 2:5 of a fused weight"
    )
    assert update.misfit((3, 9)) == LoKr((np.ones((3, 2)),), (np.ones((4, 4)),), 1.0).misfit(
        (12, 9)
    )
    assert update.misfit((3, 8)) is None
