"""VB-LoRA: a LoRA whose factors are mixtures of vectors from one bank."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.families.positions import index_misfit
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["VBLoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class VBLoRA(Update):
    """VB-LoRA: ``W' = W + B A``, where A and B consist of segments mixed from a vector bank.

    Each segment of length l, of a row of A or a column of B, is
    ``Σ softmax(top-k logits) · bank vector`` over the k largest of its logits. With
    ``save_only_topk_weights`` PEFT saves the indices of these vectors and all softmax weights but
    the last, which follows since their sum is 1.

    Strength s: ``W' = W + s·B A``.

    Args:
        a: Only the logits (r, in/l, vectors), PEFT's ``vblora_logits_A``; or the softmax weights
            (r, in/l, k − 1) and the vector indices (r, in/l, k).
        b: Only the logits (out/l, r, vectors), PEFT's ``vblora_logits_B``; or the pair, as for A.
        bank: The vectors (vectors, l), a single array shared by all sites, PEFT's
            ``vblora_vector_bank``.
        topk: The number k of vectors per segment.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> logits, bank = jnp.array([[[0.0, 9.0]]]), jnp.array([[1.0], [3.0]])
        >>> update = VBLoRA((logits,), (logits,), bank, topk=1)
        >>> update.weight_map(Base(None, (1, 1)), jnp.ones(())).shift.dense().tolist()
        [[9.0]]

    Source: https://arxiv.org/abs/2405.15179; ``peft/tuners/vblora/layer.py``.
    """

    a: tuple[Array, ...]
    b: tuple[Array, ...]
    bank: Array
    topk: int = field(metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "VBLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "bank")

    def weight_map(self, base: Base, strength: Array) -> AffineMap:
        """``(I, I, s·B A)``."""
        a, b = self._mixed(self.a), self._mixed(self.b)
        rank = a.shape[0]
        b = jnp.swapaxes(b, 1, 2).reshape(-1, rank)
        return shift(LowRank(b, a.reshape(rank, -1)).scaled(strength))

    def _mixed(self, side: tuple[Array, ...]) -> Array:
        """Returns the segments of one factor (…, l)."""
        if len(side) == 1:
            largest, indices = jax.lax.top_k(side[0], self.topk)
            weights = jax.nn.softmax(largest, axis=-1)
        else:
            first, indices = jnp.asarray(side[0]), side[1]
            weights = jnp.concatenate([first, 1 - first.sum(-1, keepdims=True)], -1)
        return (weights[..., None] * jnp.asarray(self.bank)[indices]).sum(-2)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the segments cover the weight's sides."""
        # A fraction never equals an axis, so segments that do not divide a side are reported.
        length = self.bank.shape[1] if self.bank.ndim == 2 else 1
        rows, cols = (Fraction(size, max(length, 1)) for size in shape)
        factors: ExpectedShapes = {
            "vblora_vector_bank": (self.bank, ("vectors", "l")),
            **self._expected("A", self.a, ("r", cols)),
            **self._expected("B", self.b, (rows, "r")),
        }
        return (
            mismatch(factors, shape)
            or self._check_indices("A", self.a)
            or self._check_indices("B", self.b)
        )

    def _check_indices(self, name: str, side: tuple[Array, ...]) -> str | None:
        """Describes vectors that the bank does not have."""
        count, name = self.bank.shape[0], f"vblora_logits_{name}"
        if len(side) == 2:
            return index_misfit(f"{name}_topk_indices", side[1], count)
        if self.topk <= count:
            return None
        return f"{name}: topk is {self.topk}, expected at most {count}, the vectors of the bank"

    def _expected(
        self, name: str, side: tuple[Array, ...], sizes: tuple[str | Fraction, ...]
    ) -> ExpectedShapes:
        """Returns the tensors of one factor by PEFT's names, with the shapes that fit."""
        name = f"vblora_logits_{name}"
        if len(side) == 1:
            return {name: (side[0], (*sizes, "vectors"))}
        return {
            f"{name}_topk_weights": (side[0], (*sizes, self.topk - 1)),
            f"{name}_topk_indices": (side[1], (*sizes, self.topk)),
        }

    def size(self) -> str:
        """The rank, and the size of the bank."""
        return f"rank {self.a[0].shape[0]} of {self.bank.shape[0]} vectors"
