"""FRoD: new coefficients for the weight, in a basis shared by all modules of a category."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.families.positions import as_int32, position_misfit
from jaxmix.operators import Dense, Sparse
from jaxmix.operators.scattering import scattered
from jaxmix.operators.solving import product, solve
from jaxmix.pytrees import register_dataclass

__all__ = ["FRoD", "lengths", "module_category"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class FRoD(Update):
    """FRoD: ``W' = W − W₀ + U (S + diag(l)) Vᵀ``, where W₀ is the base's weight and S is sparse.

    U has the normalized columns of ``W₀ V⁻ᵀ``. With S = 0 and the norms of these columns as l, the
    weight is unchanged. PEFT computes U in float32.

    Strength s: ``W' = W + s·(U (S + diag(l)) Vᵀ − W₀)``.

    Args:
        v: V (in, in), PEFT's ``frod_V`` of the site's module category.
        values: The non-zero entries of S (n,), PEFT's ``frod_lambda_s_values``.
        indices: Their rows and columns (2, n) int32, PEFT's ``frod_s_indices``.
        lengths: l (in,), PEFT's ``frod_lambda_l``.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.
        directions: Uᵀ (in, out); None to compute it.

    Raises:
        ShapeError: Raised by `compose` if the factors do not have the weight's inputs.

    Example:
        >>> update = FRoD(jnp.eye(1), jnp.zeros(0), jnp.zeros((2, 0), int), jnp.array([7.0]))
        >>> update.weight_map(Base(jnp.array([[-2.0]]), (1, 1)), jnp.ones(()))(jnp.ones((1, 1)))
        Array([[-4.]], dtype=float32)

    Source: ``peft/tuners/frod/layer.py``.
    """

    v: Float[Array, "in in"]
    values: Float[Array, " n"]
    indices: Int[Array, "2 n"]
    lengths: Float[Array, " in"]
    transposed: bool | None = field(default=False, metadata={"static": True})
    directions: Float[Array, "in out"] | None = None

    family: ClassVar[str] = "FRoD"
    trained: ClassVar[tuple[str, ...]] = ("values", "lengths")

    @property
    def reads_base(self) -> bool:
        """Always: the map is made from the base's weight."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(U (S + diag(l)) Vᵀ − W₀))``."""
        w, v = base.read("matrix"), jnp.asarray(self.v)
        inner = Sparse(jnp.asarray(self.values), as_int32(self.indices), *v.shape)
        coefficients = scattered(jnp.diag(jnp.asarray(self.lengths)), inner.T)
        directions = _directions(w, v) if self.directions is None else self.directions
        directions = jnp.asarray(directions)
        # The order that takes fewer operations.
        if w.shape[0] > w.shape[1]:
            target = product(product(v, coefficients), directions)
        else:
            target = product(v, product(coefficients, directions))
        return shift(Dense(strength * (target.T - w)))

    @property
    def decomposes(self) -> bool:
        """Whether U is still to be computed."""
        return self.directions is None

    def decomposed(self, matrix: np.ndarray) -> "FRoD":
        """Returns the same with U."""
        columns = np.linalg.solve(np.asarray(self.v).astype(matrix.dtype), matrix.T)
        norms = np.linalg.norm(columns, axis=1, keepdims=True)
        is_nonzero = norms**2 > 1e-24
        directions = np.where(is_nonzero, columns / np.where(is_nonzero, norms, 1), 0)
        return replace(self, directions=directions.astype(matrix.dtype))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the basis and the coefficients have the weight's inputs."""
        factors: ExpectedShapes = {
            "frod_V": (self.v, (shape[1], shape[1])),
            "frod_lambda_s_values": (self.values, ("n",)),
            "frod_s_indices": (self.indices, (2, "n")),
            "frod_lambda_l": (self.lengths, (shape[1],)),
        }
        within = (shape[1], shape[1])
        return mismatch(factors, shape) or position_misfit("frod_s_indices", self.indices, within)

    def size(self) -> str:
        """The number of entries besides the diagonal."""
        return f"{self.values.shape[0]} entries"


def module_category(site: str) -> str:
    """Returns the category of a module; all modules of a category share V and the positions.

    PEFT uses the last two parts of the module's path, or only the last part if a layer's number
    precedes it. It distinguishes the projection after BERT's attention from the one after its MLP,
    although both are called ``output.dense``.

    Args:
        site: The module's name.

    Returns:
        The name of the category.

    Example:
        >>> module_category("layers.0.attn.q"), module_category("h.0.fc"), module_category("head")
        ('attn_q', 'fc', 'head')

    Source: ``peft/tuners/frod/model.py``.
    """
    *before, last = site.split(".")
    if not before or before[-1].isdigit():
        return last
    if before[-2:] == ["attention", "output"] and last == "dense":
        return "attention_output"
    return f"{before[-1]}_{last}"


def lengths(w: Float[Array, "out in"], v: Float[Array, "in in"]) -> Float[Array, " in"]:
    """Returns the norms of the columns of ``W₀ V⁻ᵀ``. As l, with S = 0, they give the weight W₀.

    Args:
        w: The base's weight W₀.
        v: V.

    Returns:
        l, in the dtype of the weight.

    Example:
        >>> lengths(jnp.array([[3.0, 0.0], [4.0, 2.0]]), jnp.eye(2)).tolist()
        [5.0, 2.0]

    Source: ``peft/tuners/frod/layer.py``.
    """
    return jnp.linalg.norm(_columns(w, v), axis=1).astype(w.dtype)


def _columns(w: Float[Array, "out in"], v: Float[Array, "in in"]) -> Float[Array, "in out"]:
    """``V⁻¹ W₀ᵀ``, the columns of ``W₀ V⁻ᵀ`` as rows."""
    # LAPACK needs at least float32.
    wide = np.promote_types(w.dtype, np.float32)
    return solve(v.astype(wide), w.T.astype(wide))


def _directions(w: Float[Array, "out in"], v: Float[Array, "in in"]) -> Float[Array, "in out"]:
    """Returns Uᵀ: the normalized columns of ``W₀ V⁻ᵀ``; columns of zeros stay zero."""
    columns = _columns(w, v)
    square = jnp.sum(columns * columns, axis=1, keepdims=True)
    is_nonzero = square > 1e-24
    norms = jnp.sqrt(jnp.where(is_nonzero, square, jnp.ones_like(square)))
    return jnp.where(is_nonzero, columns / norms, jnp.zeros_like(columns)).astype(w.dtype)
