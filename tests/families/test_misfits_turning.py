"""Messages for factors that do not fit: families that rotate or read a weight."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmix.families import (
    BOFT,
    DEFT,
    HRA,
    IA3,
    OFT,
    PSOFT,
    FRoD,
    GLoRA,
    HiRA,
    MiSS,
    PEANuT,
    RoAd,
    Tokens,
    Update,
)


def z(*shape: int) -> Any:
    """An array of this shape."""
    return jnp.zeros(shape)


def rows(*numbers: int) -> Any:
    """Rows of an embedding."""
    return jnp.array(numbers)


# The weight is (6, 9) in all cases.
MISFITS: dict[str, tuple[Update, str]] = {
    "oft, terms": (
        OFT(z(3, 3), 2**40),
        "terms is 1099511627776, expected an integer from 1 to 1,000",
    ),
    "psoft, terms": (
        PSOFT(z(2, 9), z(6, 2), z(1), 1.0, terms=0),
        "terms is 0, expected an integer from 1 to 1,000",
    ),
    "ia3": (IA3(z(9)), "ia3_l has shape (9,), expected (6,) from weight (6, 9)"),
    "ia3, inputs": (
        IA3(z(3), on_input=True),
        "ia3_l has shape (3,), expected (9,) from weight (6, 9)",
    ),
    "ia3, channels": (
        IA3(z(4), on_input=True, axes=2),
        "ia3_l has shape (4,), expected (in / kernel,) from weight (6, 9)",
    ),
    "boft": (
        BOFT(z(1, 2, 4, 4), z(6)),
        "boft_R (1, 2, 4, 4): 2 blocks of size 4 rotate 8, expected 9 from weight (6, 9)",
    ),
    "boft, on outputs": (
        BOFT(z(1, 3, 3, 3), on_output=True),
        "boft_R (1, 3, 3, 3): 3 blocks of size 3 rotate 9, expected 6 from weight (6, 9)",
    ),
    "boft, an axis too few": (
        BOFT(z(3, 3, 3)),
        "boft_R has shape (3, 3, 3), expected (factors, blocks, b, b)",
    ),
    "boft, orders": (
        BOFT(z(2, 3, 3, 3), orders=jnp.zeros((1, 9), int)),
        "orders has shape (1, 9), expected (2, 9)",
    ),
    "boft, rescale": (
        BOFT(z(1, 3, 3, 3), z(9)),
        "boft_s has shape (9,), expected (6,)",
    ),
    "hra": (HRA(z(6, 4)), "hra_u has shape (6, 4), expected (9, 4) from weight (6, 9)"),
    "hra, too many": (
        HRA(z(9, 10), orthogonal=True),
        "hra_u has 10 columns to orthogonalize, expected at most 9",
    ),
    "road": (
        RoAd(z(4), z(3), 1, 2),
        "road_theta has shape (4,), expected (3,) for variant 1 from weight (6, 9)",
    ),
    "road, groups": (
        RoAd(z(3), z(3), 1, 4),
        "the group size is 4, expected an even divisor of 6",
    ),
    "tokens": (
        Tokens(z(2, 8), rows(0, 1)),
        "trainable_tokens_delta has shape (2, 8), expected (2, 9) from weight (6, 9)",
    ),
    "tokens, beyond": (
        Tokens(z(2, 9), rows(0, 6)),
        "token_indices go from 0 to 6, expected rows below 6 from weight (6, 9)",
    ),
    "tokens, twice": (
        Tokens(z(2, 9), rows(3, 3)),
        "token_indices repeats a row, expected each row once",
    ),
    "miss": (
        MiSS(z(3, 4)),
        "miss_block has shape (3, 4), expected (r, q) with r at most in and a q that "
        "divides out from weight (6, 9)",
    ),
    "miss, bat": (
        MiSS(z(3, 2, 2), bat=True),
        "miss_block has shape (3, 2, 2), expected (out/r, r, r) with an r that divides out and "
        "in from weight (6, 9)",
    ),
    "hira": (
        HiRA(z(3, 8), z(5, 3)),
        "hira_A has shape (3, 8), expected (3, 9); hira_B has shape (5, 3), expected (6, 3) from "
        "weight (6, 9)",
    ),
    "glora": (
        GLoRA(a=(z(6, 2), z(3, 9)), b=(z(5, 1),), c=(z(6, 1),), d=(z(9),)),
        "glora_A.Xu has shape (3, 9), expected (2, 9); glora_B.X has shape (5, 1), expected "
        "(6, 1); glora_C.X has shape (6, 1), expected (9, 1); glora_D.X has shape (9,), expected "
        "(6,) from weight (6, 9)",
    ),
    "glora, on inputs": (
        GLoRA(a=(z(4, 2), z(2, 4)), on_input=True),
        "glora_A.Xd has shape (4, 2), expected (9, 2); glora_A.Xu has shape (2, 4), expected "
        "(2, 9) from weight (6, 9)",
    ),
    "glora, on inputs, spread": (
        GLoRA(a=(z(1),), on_input=True),
        "glora_A has 1 factors, expected 2",
    ),
    "glora, three factors": (
        GLoRA(b=(z(6, 1), z(1, 1), z(1, 9))),
        "glora_B has 3 factors, expected at most 2",
    ),
    "psoft, a number": (
        PSOFT(z(), z(6, 4), z(6), 1.0),
        "A has shape (), expected (r, 9); psoft_R.weight has shape (6,), expected (0,) from weight "
        "(6, 9)",
    ),
    "psoft": (
        PSOFT(z(4, 9), z(6, 4), z(5), 1.0, outputs=z(3)),
        "psoft_R.weight has shape (5,), expected (6,); psoft_R.vector_b has shape (3,), expected "
        "(4,) from weight (6, 9)",
    ),
    "deft": (
        DEFT(z(5, 3), z(3, 9)),
        "deft_P has shape (5, 3), expected (6, 3) from weight (6, 9)",
    ),
    "deft, too many": (
        DEFT(z(6, 7), method="qr"),
        "deft_P has 7 columns to orthogonalize, expected at most 6",
    ),
    "peanut": (
        PEANuT(z(3, 6), z(6, 3), (z(3, 2),), (z(3, 3),)),
        "peanut_encoders.0 has shape (3, 2), expected (3, 3) from weight (6, 9)",
    ),
    "peanut, no pairs": (
        PEANuT(z(3, 6), z(6, 3), (z(3, 3),)),
        "1 encoders and 0 decoders, expected equal numbers",
    ),
    "frod": (
        FRoD(z(8, 8), z(2), jnp.zeros((2, 3), int), z(9)),
        "frod_V has shape (8, 8), expected (9, 9); frod_s_indices has shape (2, 3), expected "
        "(2, 2) from weight (6, 9)",
    ),
}


@pytest.mark.parametrize(("update", "message"), MISFITS.values(), ids=MISFITS)
def test_misfits(update: Update, message: str) -> None:
    assert update.misfit((6, 9)) == message


def test_traced_rows_are_not_checked() -> None:
    """Under jit only shapes can be checked."""
    beyond = Tokens(z(1, 9), rows(6))
    assert beyond.misfit((6, 9))
    messages = []
    jax.jit(lambda update: messages.append(update.misfit((6, 9))))(beyond)
    assert messages == [None]
    assert Tokens(z(0, 9), jnp.zeros(0, int)).misfit((6, 9)) is None
