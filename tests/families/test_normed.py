"""An additive update with a magnitude, against NumPy's formula, for outputs and for inputs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import IA3, OFT, LoHa, LoRA, Normed, Replace

from ..uncompiled import uncompiled

OUT, IN = 4, 6
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, IN)), RNG.normal(size=(OUT, 2))
W = RNG.normal(size=(OUT, IN))
LORA = LoRA(A, B, 0.5)


def normed(size: int, axis: Literal["out", "in"] = "out", eps: float = 0.25) -> Normed:
    return Normed(LORA, 1.0 + np.arange(size), eps, axis)


def mapped(update: Normed, w: Any, strength: float, base: Any = W) -> np.ndarray:
    """The weight after the update."""
    with jax.enable_x64(True), uncompiled():
        update, matrix = jax.tree.map(jnp.asarray, update), jnp.asarray(base)
        found = update.weight_map(Base(matrix, matrix.shape), jnp.asarray(strength))
        return np.asarray(found(jnp.asarray(w)))


CHANNELS = 3  # of two kernel points each
ADAPTED = W + 0.5 * B @ A
SCALES = {
    "out": (1 + np.arange(OUT)) / (np.linalg.norm(ADAPTED, axis=1) + 0.25),
    "in": (1 + np.arange(CHANNELS))
    / (np.linalg.norm(ADAPTED.reshape(OUT, CHANNELS, 2), axis=(0, 2)) + 0.25),
}


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("axis", ["out", "in"])
def test_map_is_the_formula(axis: Literal["out", "in"], strength: float) -> None:
    """The norms are those of the base, whatever weight is mapped."""
    c = SCALES["out"][:, None] if axis == "out" else np.repeat(SCALES["in"], 2)[None]
    now = RNG.normal(size=(OUT, IN))
    expected = (1 - strength) * now + strength * c * (now + 0.5 * B @ A)
    update = normed(OUT if axis == "out" else CHANNELS, axis)
    np.testing.assert_allclose(mapped(update, now, strength), expected, rtol=1e-12)


def test_overflowing_norm_is_nan() -> None:
    """Zeros in its place would look like a result; other rows are not affected."""
    large = np.where(np.arange(OUT)[:, None] == 1, 1e200, W)
    found = mapped(normed(OUT), W, 1.0, large)
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2, 3]]).all()


def test_precomputed_norms_are_used() -> None:
    """They are those that the map would compute, and they do not depend on the strength."""
    update = normed(OUT)
    with jax.enable_x64(True), uncompiled():
        base, one = Base(jnp.asarray(W), (OUT, IN)), jnp.asarray(1.0)
        norms = update.precompute(base, one)
        np.testing.assert_allclose(norms, np.linalg.norm(ADAPTED, axis=1))
        given = Base(None, (OUT, IN), precomputed=2 * norms)
        left = update.weight_map(given, one).left.dense()
    expected = (1 + np.arange(OUT)) / (2 * np.asarray(norms) + 0.25)
    np.testing.assert_allclose(np.diag(left), expected)
    assert update.precomputed_from == ("base",)


@pytest.mark.parametrize(
    ("update", "problem"),
    [
        (normed(OUT), None),
        (normed(CHANNELS, "in"), None),
        (normed(IN, "in"), None),
        (normed(1, "in"), None),
        (normed(3), "dora_scale has shape (3,), expected (4,) from weight (4, 6)"),
        (normed(4, "in"), "dora_scale has shape (4,), expected (6 / kernel,) from weight (4, 6)"),
        (normed(0, "in"), "dora_scale has shape (0,), expected (6 / kernel,) from weight (4, 6)"),
        (
            Normed(LORA, np.ones(OUT), np.ones(2)),
            "the eps of dora_scale has shape (2,), expected () from weight (4, 6)",
        ),
        (
            Normed(LoRA(A[:, 1:], B, 1.0), np.ones(OUT)),
            "lora_A has shape (2, 5), expected (2, 6) from weight (4, 6)",
        ),
        *[
            (
                Normed(update, np.ones(OUT)),
                f"dora_scale is on {update.family}, expected an update that only adds to the "
                "weight",
            )
            for update in (
                OFT(np.ones((3, 1))),
                IA3(np.ones(OUT)),
                Replace(W),
                LoRA(A, B, 1.0, bias=np.ones(OUT)),
                LoRA(A, B, 1.0, magnitude=np.ones(OUT)),
            )
        ],
    ],
)
def test_misfits(update: Normed, problem: str | None) -> None:
    """The magnitude has the side's size, and the update only adds."""
    assert update.misfit((OUT, IN)) == problem


def test_size_names_the_side() -> None:
    loha = LoHa(B, A, B, A, 1.0)
    assert normed(OUT).size() == "LoRA rank 2 normed by output"
    assert Normed(loha, np.ones(IN), axis="in").size() == "LoHa rank 2 normed by input"
