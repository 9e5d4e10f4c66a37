"""Messages for factors that do not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxmix.families import (
    OFT,
    AdaLoRA,
    Delta,
    LoHa,
    LoKr,
    LoRA,
    Rebase,
    Replace,
    SHiRA,
    Together,
    Update,
)


def z(*shape: int) -> Any:
    """An array of this shape."""
    return jnp.zeros(shape)


# The weight is (6, 9) in all cases.
MISFITS: dict[str, tuple[Update, str]] = {
    "lora, another model's": (
        LoRA(z(3, 8), z(5, 3), 1.0),
        "lora_A has shape (3, 8), expected (3, 9); lora_B has shape (5, 3), expected (6, 3) from "
        "weight (6, 9)",
    ),
    "lora, two ranks": (
        LoRA(z(3, 9), z(6, 2), 1.0),
        "lora_B has shape (6, 2), expected (6, 3) from weight (6, 9)",
    ),
    "lora, an axis too few": (
        LoRA(z(9), z(6, 2), 1.0),
        "lora_A has shape (9,), expected (r, 9) from weight (6, 9)",
    ),
    "lora, magnitude and bias": (
        LoRA(z(3, 9), z(6, 3), 1.0, magnitude=z(9), bias=z(5)),
        "lora_magnitude_vector has shape (9,), expected (6,); lora_B.bias has shape (5,), expected "
        "(6,) from weight (6, 9)",
    ),
    "lora, an embedding's magnitude": (
        LoRA(z(3, 9), z(6, 3), 1.0, magnitude=z(6), embedding=True),
        "lora_magnitude_vector has shape (6,), expected (9,) from weight (6, 9)",
    ),
    "adalora": (
        AdaLoRA(z(3, 9), z(5, 3), z(2), 1.0),
        "lora_B has shape (5, 3), expected (6, 3); lora_E has shape (2,), expected (3,) from "
        "weight (6, 9)",
    ),
    "loha": (
        LoHa(z(6, 2), z(2, 9), z(5, 4), z(4, 7), 1.0),
        "hada_w2_a has shape (5, 4), expected (6, 4); hada_w2_b has shape (4, 7), expected (4, 9) "
        "from weight (6, 9)",
    ),
    "loha, core": (
        LoHa(z(2, 5), z(2, 3), z(2, 6), z(2, 3), 1.0, z(2, 2, 3, 1), z(2, 4, 3, 1)),
        "hada_w1_a has shape (2, 5), expected (2, 6); hada_t2 has shape (2, 4, 3, 1), expected "
        "(2, 2, 3, 1) from weight (6, 9)",
    ),
    "loha, a kernel that does not divide": (
        LoHa(z(2, 6), z(2, 4), z(2, 6), z(2, 4), 1.0, z(2, 2, 2, 1), z(2, 2, 2, 1)),
        "hada_w1_b has shape (2, 4), expected (2, 9/2); hada_w2_b has shape (2, 4), expected "
        "(2, 9/2) from weight (6, 9)",
    ),
    "lokr": (
        LoKr((z(2, 3),), (z(3, 4),), 1.0),
        "lokr_w1 ⊗ lokr_w2 of (2, 3) and (3, 4) has shape (6, 12), expected (6, 9)",
    ),
    "lokr, core": (
        LoKr((z(2, 3),), (z(2, 3), z(2, 3)), 1.0, z(2, 2, 2, 1)),
        "lokr_w1 ⊗ lokr_w2 of (2, 3) and (3, 6) has shape (6, 18), expected (6, 9)",
    ),
    "lokr, a pair of two ranks": (
        LoKr((z(2, 2), z(3, 3)), (z(3, 3),), 1.0),
        "lokr_w1_b has shape (3, 3), expected (2, 3) from weight (6, 9)",
    ),
    "lokr, an axis too few": (
        LoKr((z(6),), (z(3, 3),), 1.0),
        "lokr_w1 has shape (6,), expected (l, m) from weight (6, 9)",
    ),
    "lokr, a core and a whole Y": (
        LoKr((z(2, 3),), (z(3, 3),), 1.0, z(2, 2, 1, 1)),
        "lokr_w2 has 1 factors, expected 1 or 2, and 2 with a core",
    ),
    "lokr, three factors": (
        LoKr((z(2, 3), z(3, 3), z(3, 3)), (z(3, 3),), 1.0),
        "lokr_w1 has 3 factors, expected 1 or 2, and 2 with a core",
    ),
    "oft": (
        OFT(z(2, 6)),
        "oft_R (2, 6): 2 blocks of size 4 rotate 8 inputs, expected 9 from weight (6, 9)",
    ),
    "oft, shared": (
        OFT(z(1, 6)),
        "oft_R (1, 6): 1 blocks of size 4 rotate 4 inputs, expected 9 from weight (6, 9)",
    ),
    "oft, no triangle": (
        OFT(z(3, 4)),
        "oft_R has 4 values per block, expected b(b − 1)/2",
    ),
    "oft, an axis too few": (
        OFT(z(3)),
        "oft_R has shape (3,), expected (blocks, b(b − 1)/2)",
    ),
    "shira": (
        SHiRA(z(3), jnp.zeros((2, 4), int)),
        "shira_indices has shape (2, 4), expected (2, 3) from weight (6, 9)",
    ),
    "shira, beyond": (
        SHiRA(z(2), jnp.array([[0, 6], [1, 8]])),
        "shira_indices go from 0 to 6 and from 1 to 8, expected rows below 6 and columns below 9 "
        "from weight (6, 9)",
    ),
    "shira, before": (
        SHiRA(z(2), jnp.array([[0, 5], [-1, 8]])),
        "shira_indices go from 0 to 5 and from -1 to 8, expected rows below 6 and columns below 9 "
        "from weight (6, 9)",
    ),
    "rebase": (
        Rebase(z(7, 9)),
        "the base weight in the file has shape (7, 9), expected (6, 9). If the adapter was "
        "trained with new tokens, resize the base's vocabulary first",
    ),
    "replace": (
        Replace(weight=z(9, 6)),
        "saved weight has shape (9, 6), expected (6, 9)",
    ),
    "replace, a number": (
        Replace(weight=z()),
        "saved weight has shape (), expected (6, 9)",
    ),
    "replace, bias": (
        Replace(bias=z(9)),
        "saved bias has shape (9,), expected (6,)",
    ),
    "delta": (
        Delta(weight=z(9, 6)),
        "diff has shape (9, 6), expected (6, 9)",
    ),
    "delta, bias": (
        Delta(bias=z(9)),
        "diff_b has shape (9,), expected (6,)",
    ),
    "together": (
        Together((Replace(bias=z(6)), LoRA(z(3, 9), z(6, 2), 1.0))),
        "lora_B has shape (6, 2), expected (6, 3) from weight (6, 9)",
    ),
}


@pytest.mark.parametrize(("update", "message"), MISFITS.values(), ids=MISFITS)
def test_misfits(update: Update, message: str) -> None:
    assert update.misfit((6, 9)) == message


def test_traced_positions_are_not_checked() -> None:
    """Under jit only shapes can be checked."""
    beyond = SHiRA(z(1), jnp.array([[6], [1]]))
    assert beyond.misfit((6, 9))
    messages = []
    jax.jit(lambda update: messages.append(update.misfit((6, 9))))(beyond)
    assert messages == [None]
    assert SHiRA(z(0), jnp.zeros((2, 0), int)).misfit((6, 9)) is None
