"""LoKr: a Kronecker product, either factor full or low-rank."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import Update
from jaxmix.operators import Dense, Kronecker, Operator

__all__ = ["LoKr"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoKr(Update):
    """LoKr: ``W' = W + γ·(X ⊗ Y)``, with X (l, m), Y (k, n·kernel), W (l·k, m·n·kernel).

    Each of X and Y is either given whole or as a product; a Tucker core t2 makes
    ``Y[p, q, …] = Σᵢⱼ t2[i, j, …] Ya[i, p] Yb[j, q]``. A Conv1d whose Y has three axes is PEFT's
    own trap: ``torch.kron`` pads X's shape on the *left*, and the reshape to W scrambles the axes;
    what PEFT computes is what counts, so that form is computed like that, and is dense.

    Strength s: ``W' = W + s·γ·(X ⊗ Y)``.

    Args:
        x: X whole (PEFT's ``lokr_w1``), or the pair ``lokr_w1_a`` (l, r), ``lokr_w1_b`` (r, m).
        y: Y whole (``lokr_w2``, (k, n, *kernel)), or the pair ``lokr_w2_a`` (k, r), ``lokr_w2_b``
            (r, n·kernel); with a core (r, k) and (r, n).
        scale: γ = alpha/rank; PEFT applies it to full factors too.
        t2: Y's Tucker core ``lokr_t2`` (r, r, *kernel); None without.
        rank: r of the config, for people.

    Raises:
        ShapeError: by `compose`, where X ⊗ Y is not of the weight's size.

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
    rank: int = field(default=0, metadata={"static": True})

    family: ClassVar[str] = "LoKr"

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·X ⊗ Y)``."""
        x = self.x[0] if len(self.x) == 1 else self.x[0] @ self.x[1]
        if self.t2 is not None:
            y = jnp.einsum("ij...,ip,jq->pq...", self.t2, *self.y)
        else:
            y = self.y[0] if len(self.y) == 1 else self.y[0] @ self.y[1]
        if y.ndim == 3:
            delta: Operator = Dense(jnp.kron(x[None], y).reshape(base.shape))
        else:
            delta = Kronecker(x, y.reshape(y.shape[0], -1))
        return shift(delta.scaled(strength * self.scale))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether X ⊗ Y has the weight's sizes."""
        l_size, m_size = self.x[0].shape[0], self.x[-1].shape[1]
        if self.t2 is not None:
            k_size, n_size = self.y[0].shape[1], self.y[1].shape[1] * self.t2[0, 0].size
        else:
            k_size, n_size = self.y[0].shape[0], self.y[-1][0].size if len(self.y) == 1 else 0
            n_size = n_size or self.y[1].shape[1]
        found = (l_size * k_size, m_size * n_size)
        if found == shape:
            return None
        factors = f"({l_size}, {m_size}) and ({k_size}, {n_size})"
        return f"lokr_w1 ⊗ lokr_w2 of {factors} has shape {found}, expected {shape}"

    def size(self) -> str:
        """The sizes of its factors."""
        return f"rank {self.rank}" if self.rank else "full"
