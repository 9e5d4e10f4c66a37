"""LoKr: a Kronecker product of two factors, each full or low-rank."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import Dense, Kronecker, Operator
from jaxmix.pytrees import register_dataclass

__all__ = ["LoKr"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class LoKr(Update):
    """LoKr: ``W' = W + γ·(X ⊗ Y)`` with X (l, m), Y (k, n·kernel) and W (l·k, m·n·kernel).

    X and Y are each given as one full array or as a pair of factors. With a Tucker core t2,
    ``Y[p, q, …] = Σᵢⱼ t2[i, j, …] Ya[i, p] Yb[j, q]``. For a Conv1d whose full Y has three axes,
    PEFT's ``torch.kron`` pads the shape of X on the *left*, so its reshape to W permutes the axes.
    That result is reproduced here, with a dense Δ.

    Strength s: ``W' = W + s·γ·(X ⊗ Y)``.

    Args:
        x: The full X, PEFT's ``lokr_w1``, or the pair ``lokr_w1_a`` (l, r), ``lokr_w1_b`` (r, m).
        y: The full Y, PEFT's ``lokr_w2`` ``(k, n, *kernel)``, or the pair ``lokr_w2_a`` (k, r),
            ``lokr_w2_b`` (r, n·kernel); with a core the pair is (r, k) and (r, n).
        scale: γ = alpha/rank; PEFT applies it to full factors too.
        t2: Y's Tucker core ``lokr_t2`` ``(r, r, *kernel)``; None if absent.

    Raises:
        ShapeError: Raised by `compose` if X ⊗ Y does not have the weight's size.

    Example:
        >>> import jax.numpy as jnp
        >>> x, y = (jnp.arange(2.0)[:, None],), (jnp.ones((1, 2)),)
        >>> LoKr(x, y, 1.0).weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[0.0, 0.0], [1.0, 1.0]]

    Source: https://arxiv.org/abs/2309.14859; ``peft/tuners/lokr/layer.py``.
    """

    x: tuple[Float[Array, "..."], ...]
    y: tuple[Float[Array, "..."], ...]
    scale: Float[Array, ""] | float
    t2: Float[Array, "r r *k"] | None = None

    family: ClassVar[str] = "LoKr"
    trained: ClassVar[tuple[str, ...]] = ("x", "y", "t2")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·X ⊗ Y)``."""
        x, y = _full(self.x, None), _full(self.y, self.t2)
        if y.ndim == 3:
            delta: Operator = Dense(jnp.kron(x[None], y).reshape(base.shape))
        else:
            delta = Kronecker(x, y.reshape(y.shape[0], -1))
        return shift(delta.scaled(strength * self.scale))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the factors of X and Y fit each other and X ⊗ Y has the weight's size."""
        for name, side, core in (("lokr_w1", self.x, None), ("lokr_w2", self.y, self.t2)):
            if len(side) != 2 and (len(side) != 1 or core is not None):
                return f"{name} has {len(side)} factors, expected 1 or 2, and 2 with a core"
        first = _expected("lokr_w1", self.x, None, ("l", "m"), kernel=False)
        second = _expected("lokr_w2", self.y, self.t2, ("k", "n"))
        if problem := mismatch({**first, **second, "scale": (self.scale, ())}, shape):
            return problem
        (rows, cols), (k, *points) = _shape(self.x, None), _shape(self.y, self.t2)
        found = (rows * k, cols * math.prod(points))
        if found == shape:
            return None
        factors = f"({rows}, {cols}) and ({k}, {math.prod(points)})"
        return f"lokr_w1 ⊗ lokr_w2 of {factors} has shape {found}, expected {shape}"

    def size(self) -> str:
        """The largest rank of the pairs of factors, or "full" if there is no pair."""
        ranks = [len(side[1]) for side in (self.x, self.y) if len(side) == 2]
        return f"rank {max(ranks)}" if ranks else "full"


def _full(side: tuple[Array, ...], core: Array | None) -> Array:
    """Returns the full X or Y."""
    if core is not None:
        return jnp.einsum("ij...,ip,jq->pq...", core, *side)
    return side[0] if len(side) == 1 else side[0] @ side[1]


def _shape(side: tuple[Array, ...], core: Array | None) -> tuple[int, ...]:
    """Returns the shape of the full X or Y."""
    if core is not None:
        return side[0].shape[1], side[1].shape[1], *core.shape[2:]
    return side[0].shape if len(side) == 1 else (side[0].shape[0], side[1].shape[1])


def _expected(
    name: str,
    side: tuple[Array, ...],
    core: Array | None,
    sizes: tuple[str, str],
    *,
    kernel: bool = True,
) -> ExpectedShapes:
    """Returns the factors of X or Y by PEFT's names, with the shapes that fit each other."""
    rows, cols = sizes
    if len(side) == 1:
        return {name: (side[0], (rows, cols, *(side[0].shape[2:] if kernel else ())))}
    return {
        f"{name}_a": (side[0], (rows, "r") if core is None else ("r", rows)),
        f"{name}_b": (side[1], ("r", cols)),
        "lokr_t2": (core, () if core is None else ("r", "r", *core.shape[2:])),
    }
