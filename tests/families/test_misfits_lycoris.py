"""Messages for factors of DiagOFT and Normed that do not fit. The weight is always (6, 9)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import OFT, Delta, DiagOFT, LoRA, Normed, Replace, Update


def z(*shape: int) -> Any:
    """An array of this shape."""
    return jnp.zeros(shape)


_LORA = LoRA(z(3, 9), z(6, 3), 1.0)

MISFITS: dict[str, tuple[Update, str]] = {
    "rescale": (DiagOFT(rescale=z(5)), "rescale has shape (5,), expected (6,) from (6, 9)"),
    "blocks of other axes": (
        DiagOFT(z(6, 6)),
        "oft_blocks has shape (6, 6), expected (blocks, b, b)",
    ),
    "blocks that are not square": (
        DiagOFT(z(2, 3, 2)),
        "oft_blocks has shape (2, 3, 2), expected (blocks, b, b)",
    ),
    "blocks of another side": (
        DiagOFT(z(3, 3, 3)),
        "oft_blocks (3, 3, 3): 3 blocks of size 3 rotate 9 outputs, expected 6 from weight (6, 9)",
    ),
    "blocks of inputs": (
        DiagOFT(z(2, 3, 3), side="in"),
        "oft_blocks (2, 3, 3): 2 blocks of size 3 rotate 6 inputs, expected 9 from weight (6, 9)",
    ),
    "a shared block": (
        DiagOFT(z(1, 4, 4)),
        "oft_blocks (1, 4, 4): 1 blocks of size 4 rotate 4 outputs, expected 6 from weight (6, 9)",
    ),
    "blocks that overhang by one too many": (
        DiagOFT(z(2, 4, 4), factor=-0.5),
        "oft_blocks (2, 4, 4): 2 blocks of size 4 rotate 8 outputs, expected 6 from weight (6, 9)",
    ),
    "the normed update": (
        Normed(LoRA(z(3, 8), z(6, 3), 1.0), z(6)),
        "lora_A has shape (3, 8), expected (3, 9) from weight (6, 9)",
    ),
    "magnitude": (
        Normed(_LORA, z(9)),
        "dora_scale has shape (9,), expected (6,) from weight (6, 9)",
    ),
    "magnitude of inputs": (
        Normed(_LORA, z(6), axis="in"),
        "dora_scale has shape (6,), expected (9 / kernel,) from weight (6, 9)",
    ),
    "a rotation": (
        Normed(OFT(z(3, 3)), z(6)),
        "dora_scale is on OFT, expected an update that only adds to the weight",
    ),
    "an update that reads the base": (
        Normed(LoRA(z(3, 9), z(6, 3), 1.0, magnitude=z(6)), z(6)),
        "dora_scale is on LoRA, expected an update that only adds to the weight",
    ),
    "a bias": (
        Normed(LoRA(z(3, 9), z(6, 3), 1.0, bias=z(6)), z(6)),
        "dora_scale is on LoRA, expected an update that only adds to the weight",
    ),
    "a replaced leaf": (
        Normed(Replace(z(6, 9)), z(6)),
        "dora_scale is on Replace, expected an update that only adds to the weight",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfit_messages(case: str) -> None:
    """The message describes the factor that does not fit."""
    update, message = MISFITS[case]
    assert update.misfit((6, 9)) == message


def test_valid_factors_fit() -> None:
    """PEFT up to 0.13 cuts blocks, and a magnitude by channel covers all points of a kernel."""
    for update in (
        DiagOFT(z(1, 4, 4), factor=-0.5),
        DiagOFT(z(1, 2, 2)),
        Normed(_LORA, z(3), axis="in"),
        Normed(_LORA, z(6)),
    ):
        assert update.misfit((6, 9)) is None
    # Seven outputs in four blocks of two: the last block is cut.
    assert DiagOFT(z(4, 2, 2), factor=-0.5).misfit((7, 9)) is None


def test_mixed_dtypes_are_checked_without_arithmetic() -> None:
    """A norm whose factors have several dtypes is checked without arithmetic."""
    update = Normed(
        LoRA(np.zeros((3, 9), np.float16), np.zeros((6, 3), np.float32), 0.5),  # pyright: ignore
        np.ones(6, np.float64),  # pyright: ignore
    )
    assert update.misfit((6, 9)) is None


def test_size_of_a_norm() -> None:
    """The sizes that users see."""
    assert Normed(_LORA, z(6)).size() == "LoRA rank 3 normed by output"
    assert DiagOFT(rescale=z(6)).size() == "6 outputs" and DiagOFT().size() == "0 outputs"
    assert DiagOFT().weight_map(Base(None, (6, 9)), jnp.ones(())).shape == (6, 9)


def test_norm_is_transposed_with_its_update() -> None:
    """The normed update is transposed too, for weights that PyTorch stores as (in, out)."""
    update = Normed(Delta(z(9, 6)), z(6)).with_transposed_weight()
    assert update.update.weight.shape == (6, 9)  # pyright: ignore[reportAttributeAccessIssue]
    assert not update.transposed
