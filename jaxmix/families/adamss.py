"""AdaMSS: groups of rows, each with a low rank, that share one projection of the input."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.families.positions import order_misfit
from jaxmix.operators import Dense, LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["AdaMSS", "grouped"]

# PEFT's settings for k-means.
_ROUNDS, _SEED = 10, 123456789


@register_dataclass
@dataclass(frozen=True, eq=False)
class AdaMSS(Update):
    """AdaMSS: ``W'[rows i] = W[rows i] + Bᵢ Aᵢ P``, over groups i of rows of the weight.

    If the layer has a bias, PEFT treats it as another column of the weight. P then has another
    column p, and ``b'[rows i] = b[rows i] + Bᵢ Aᵢ p``.

    Strength s: ``W' = W + s·Δ`` and ``b' = b + s·δ``.

    Args:
        a: The Aᵢ (rᵢ, r), PEFT's ``adamss_A.i``, one per group.
        b: The Bᵢ (rows of group i, rᵢ), PEFT's ``adamss_B.i``.
        projection: P (r, in), PEFT's ``adamss_newB`` without the bias's column.
        rows: The row indices (out,), group by group. PEFT finds the groups by clustering the rows
            of the base and does not save them.
        bias: The column p (r,) for the bias; None for a layer without a bias.
        seed: PEFT's ``random_seed``, from which these rows follow; see `for_export`.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> ones, rows = jnp.ones((1, 1)), jnp.array([1, 0])
        >>> update = AdaMSS((ones, ones), (ones, 3 * ones), ones, rows)
        >>> update.weight_map(Base(None, (2, 1)), jnp.ones(())).shift.dense().tolist()
        [[3.0], [1.0]]

    Source: ``peft/tuners/adamss/layer.py``.
    """

    a: tuple[Float[Array, "ri r"], ...]
    b: tuple[Float[Array, "rows ri"], ...]
    projection: Float[Array, "r in"]
    rows: Int[Array, " out"]
    bias: Float[Array, " r"] | None = None
    seed: int | None = field(default=None, metadata={"static": True})

    family: ClassVar[str] = "AdaMSS"
    trained: ClassVar[tuple[str, ...]] = ("a", "b")
    for_export: ClassVar[tuple[str, ...]] = ("seed",)

    @property
    def has_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·Δ)``."""
        return shift(LowRank(self._left(base.shape[0], strength), self._inner() @ self.projection))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·δ)``."""
        if self.bias is None:
            return identity((base.shape[0], 1))
        inner = self._inner() @ self.bias[:, None]
        return shift(Dense(self._left(base.shape[0], strength) @ inner))

    def _inner(self) -> Float[Array, "ranks r"]:
        """The Aᵢ, stacked vertically."""
        return jnp.concatenate(self.a)

    def _left(self, out_size: int, strength: Float[Array, ""]) -> Float[Array, "out ranks"]:
        """The Bᵢ as a block-diagonal matrix, with its rows in the weight's order."""
        blocks = jax.scipy.linalg.block_diag(*(jnp.asarray(b) for b in self.b))
        left = jnp.zeros((out_size, blocks.shape[1]), blocks.dtype)
        return (strength * left.at[self.rows].set(blocks)).astype(blocks.dtype)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that P has the weight's inputs and that the groups partition its rows."""
        out_size, in_size = shape
        groups = range(len(self.a))
        factors: ExpectedShapes = {
            "adamss_newB": (self.projection, ("r", in_size)),
            "the bias's column": (self.bias, ("r",)),
            "the groups' rows": (self.rows, (out_size,)),
            **{f"adamss_A.{i}": (self.a[i], (f"r{i}", "r")) for i in groups},
            **{f"adamss_B.{i}": (self.b[i], (f"n{i}", f"r{i}")) for i in groups},
        }
        if problem := mismatch(factors, shape):
            return problem
        if (found := sum(b.shape[0] for b in self.b)) != out_size:
            return f"adamss_B has {found} rows in total, expected {out_size} from weight {shape}"
        return order_misfit("the groups' rows", self.rows)

    def size(self) -> str:
        """The number of groups and the sum of their ranks."""
        return f"{len(self.a)} groups of rank {sum(a.shape[0] for a in self.a)} in total"


def grouped(
    matrix: np.ndarray, rank: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Groups rows as PEFT does: k-means over the weight's left singular vectors.

    Args:
        matrix: The base's weight (out, in), followed by the bias as another column if there is one.
        rank: The number of singular vectors, at most the size of the matrix.
        count: The number of groups, at most the number of rows.
        seed: PEFT's ``random_seed``, from which PyTorch draws the initial singular vectors.

    Returns:
        The left singular vectors (out, r), the right ones (r, in), and each group's rows.

    Raises:
        ImportError: If PyTorch or scikit-learn is not installed.

    Source: ``peft/tuners/adamss/utils.py``.
    """
    import torch
    from sklearn.cluster import KMeans

    weight = torch.from_numpy(np.array(matrix, np.float32))
    # PEFT draws from torch's global generator. Fork it, to leave the caller's state unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        left, _, right = torch.svd_lowrank(weight, q=min(rank, *weight.shape), niter=2)
    options: Any = dict(
        n_clusters=min(count, len(weight)),
        init="random",
        n_init=1,
        max_iter=_ROUNDS,
        random_state=_SEED,
    )
    labels = KMeans(**options).fit_predict(left.numpy().astype("float32"))
    rows = [np.flatnonzero(labels == i) for i in range(labels.max() + 1)]
    return left.numpy(), right.numpy().T, rows
