"""Messages for factors that do not fit: families that add a Δ."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmix.families import (
    C3A,
    AdaMSS,
    DeLoRA,
    FourierFT,
    GraLoRA,
    KaSA,
    PVeRA,
    RandLoRA,
    SuperTuning,
    TinyLoRA,
    UniLoRA,
    Update,
    VBLoRA,
    VeRA,
    WaveFT,
)


def z(*shape: int) -> Any:
    """An array of this shape."""
    return jnp.zeros(shape)


def n(*shape: int) -> Any:
    """Integers of this shape."""
    return jnp.zeros(shape, int)


# The weight is (6, 9) in all cases.
MISFITS: dict[str, tuple[Update, str]] = {
    "vera": (
        VeRA(z(3, 8), z(5, 3), z(5), z(2)),
        "vera_A has shape (3, 8), expected (3, 9); vera_lambda_d has shape (2,), expected (3,); "
        "vera_B has shape (5, 3), expected (6, 3); vera_lambda_b has shape (5,), expected (6,) "
        "from weight (6, 9)",
    ),
    "pvera, halves": (
        PVeRA(z(5, 9), z(6, 2), z(6), z(5)),
        "pvera_B has shape (6, 2), expected (6, 5/2) from weight (6, 9)",
    ),
    "randlora": (
        RandLoRA(z(2, 1, 5), z(8, 2, 2), z(2, 2), z(2, 6), 1.0),
        "randlora_lambda has shape (2, 2), expected (2, 3); randlora_gamma has shape (2, 6), "
        "expected (3, 6); randlora_A has shape (2, 1, 5), expected (2, 1, 6); randlora_B has shape "
        "(8, 2, 2), expected (9, 3, 2) from weight (6, 9)",
    ),
    "delora": (
        DeLoRA(z(3, 9), z(6, 2), z(2), z(6)),
        "delora_B has shape (6, 2), expected (6, 3); delora_lambda has shape (2,), expected (1,); "
        "delora_w_norm has shape (6,), expected (9,) from weight (6, 9)",
    ),
    "vblora": (
        VBLoRA((z(2, 2, 5),), (z(2, 3, 5),), z(5, 3), 2),
        "vblora_logits_A has shape (2, 2, 5), expected (2, 3, 5); vblora_logits_B has shape "
        "(2, 3, 5), expected (2, 2, 5) from weight (6, 9)",
    ),
    "vblora, stretches that do not divide": (
        VBLoRA((z(2, 2, 5),), (z(1, 2, 5),), z(5, 4), 2),
        "vblora_logits_A has shape (2, 2, 5), expected (2, 9/4, 5); vblora_logits_B has shape "
        "(1, 2, 5), expected (3/2, 2, 5) from weight (6, 9)",
    ),
    "vblora, topk": (
        VBLoRA((z(2, 3, 2), n(2, 3, 2)), (z(2, 2, 1), n(2, 2, 2)), z(5, 3), 2),
        "vblora_logits_A_topk_weights has shape (2, 3, 2), expected (2, 3, 1) from weight (6, 9)",
    ),
    "unilora": (
        UniLoRA(z(4), n(2, 9), n(6, 3), z(2, 9), z(6, 2)),
        "unilora_indices_B has shape (6, 3), expected (6, 2) from weight (6, 9)",
    ),
    "tinylora": (
        TinyLoRA(z(2, 9), z(6, 2), z(4, 2, 3), z(5)),
        "tinylora_P has shape (4, 2, 3), expected (4, 2, 2); tinylora_v has shape (5,), expected "
        "(4,) from weight (6, 9)",
    ),
    "supertuning": (
        SuperTuning(z(3), n(4), 1.0, z(2, 9), z(6, 3)),
        "supertuning_indices has shape (4,), expected (3,); supertuning_lora_B has shape (6, 3), "
        "expected (6, 2) from weight (6, 9)",
    ),
    "supertuning, beyond": (
        SuperTuning(z(2), jnp.array([3, 54])),
        "supertuning_indices go from 3 to 54, expected from 0 to 53 from weight (6, 9)",
    ),
    "c3a": (
        C3A(z(2, 2, 3)),
        "c3a_kernel has shape (2, 2, 3), expected (2, 3, 3) from weight (6, 9)",
    ),
    "c3a, blocks that do not divide": (
        C3A(z(3, 4, 2)),
        "c3a_kernel has shape (3, 4, 2), expected (3, 9/2, 2) from weight (6, 9)",
    ),
    "c3a, an axis too few": (
        C3A(z(3, 4)),
        "c3a_kernel has shape (3, 4), expected (6, 9, b) from weight (6, 9)",
    ),
    "fourierft": (
        FourierFT(z(3), n(2, 4), 1.0),
        "indices has shape (2, 4), expected (2, 3) from weight (6, 9)",
    ),
    "fourierft, beyond": (
        FourierFT(z(2), jnp.array([[0, 6], [1, 8]]), 1.0),
        "indices reach row 6 and column 8, expected rows below 6 and columns below 9",
    ),
    "fourierft, before": (
        FourierFT(z(2), jnp.array([[0, 5], [-1, 8]]), 1.0),
        "indices include -1, expected 0 or more",
    ),
    "waveft": (
        WaveFT(z(3), n(2, 4), 1.0),
        "waveft_indices has shape (2, 4), expected (2, 3) from weight (6, 9)",
    ),
    "waveft, beyond": (
        WaveFT(z(1), jnp.array([[0], [9]]), 1.0),
        "waveft_indices reach row 0 and column 9, expected rows below 6 and columns below 9",
    ),
    "gralora": (
        GraLoRA(z(3, 3, 6), z(3, 6, 3), 1.0, z(2, 8), z(6, 2)),
        "gralora_B has shape (3, 6, 3), expected (3, 6, 2); gralora_A_general has shape (2, 8), "
        "expected (2, 9) from weight (6, 9)",
    ),
    "gralora, blocks that do not divide": (
        GraLoRA(z(2, 4, 4), z(2, 4, 3), 1.0),
        "gralora_A has shape (2, 4, 4), expected (2, 9/2, 4) from weight (6, 9)",
    ),
    "gralora, ranks that do not divide": (
        GraLoRA(z(3, 3, 4), z(3, 4, 2), 1.0),
        "gralora_A has rank 4, expected a multiple of 3, its blocks",
    ),
    "adamss": (
        AdaMSS((z(1, 4),), (z(6, 2),), z(4, 8), n(5)),
        "adamss_newB has shape (4, 8), expected (4, 9); the groups' rows has shape (5,), expected "
        "(6,); adamss_B.0 has shape (6, 2), expected (6, 1) from weight (6, 9)",
    ),
    "adamss, rows": (
        AdaMSS((z(1, 4), z(1, 4)), (z(3, 1), z(2, 1)), z(4, 9), n(6)),
        "adamss_B has 5 rows in total, expected 6 from weight (6, 9)",
    ),
    "kasa": (
        KaSA(z(2, 9), z(6, 2), z(3), 1.0),
        "lora_diag has shape (3,), expected (2,) from weight (6, 9)",
    ),
    "kasa, full rank": (
        KaSA(z(6, 9), z(6, 6), z(6), 1.0),
        "lora_diag has rank 6, expected less than 6 from weight (6, 9)",
    ),
}


@pytest.mark.parametrize(("update", "message"), MISFITS.values(), ids=MISFITS)
def test_misfits(update: Update, message: str) -> None:
    assert update.misfit((6, 9)) == message


@pytest.mark.parametrize(
    ("beyond", "empty"),
    [
        (FourierFT(z(1), jnp.array([[6], [1]]), 1.0), FourierFT(z(0), n(2, 0), 1.0)),
        (WaveFT(z(1), jnp.array([[6], [1]]), 1.0), WaveFT(z(0), n(2, 0), 1.0)),
        (SuperTuning(z(1), jnp.array([54])), SuperTuning(z(0), n(0))),
    ],
)
def test_traced_positions_are_not_checked(beyond: Update, empty: Update) -> None:
    """Under jit only shapes can be checked."""
    assert beyond.misfit((6, 9))
    messages = []
    jax.jit(lambda update: messages.append(update.misfit((6, 9))))(beyond)
    assert messages == [None]
    assert empty.misfit((6, 9)) is None
