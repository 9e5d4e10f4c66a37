"""Normed updates: LyCORIS's weight decomposition, which is DoRA with any additive update."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Source, Update, mismatch
from jaxmix.operators import Diagonal, Identity, Operator, multiply
from jaxmix.operators.adding import added
from jaxmix.pytrees import register_dataclass

__all__ = ["Normed"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class Normed(Update):
    """An additive update Δ with a magnitude m: ``W' = c ⊙ (W + Δ)``, ``c = m / (‖W₀ + Δ‖ + ε)``.

    As in LyCORIS, the norm is taken for each output (as in DoRA) or for each input channel over all
    outputs and kernel points. It reads the base's weight W₀ regardless of earlier updates, like
    `LoRA` with a magnitude. The bias is unchanged.

    Strength s interpolates linearly: ``W' = (1 − s)·W + s·c ⊙ (W + Δ)``. LyCORIS's multiplier
    interpolates only c, ``((1 − s) + s·c) ⊙ (W + Δ)``, which keeps Δ at 0. At 1 both are equal.

    Args:
        update: Δ: a LoRA, LoHa, LoKr or another update that only adds to the weight.
        magnitude: m (out,), or (channels,) for inputs; LyCORIS's ``dora_scale``.
        eps: ε; LyCORIS uses the machine epsilon of its dtype.
        axis: Whether m has an entry for each output ("out") or for each input channel ("in").

    Raises:
        ShapeError: Raised by `compose` if the update or the magnitude does not fit the weight, or
            the update does more than add to it.

    Example:
        >>> from jaxmix.families import LoRA
        >>> update = Normed(LoRA(jnp.zeros((1, 2)), jnp.zeros((1, 1)), 1.0), jnp.array([10.0]))
        >>> w = jnp.array([[3.0, 4.0]])
        >>> update.weight_map(Base(w, (1, 2)), jnp.ones(()))(w).tolist()
        [[6.0, 8.0]]

    Source: https://arxiv.org/abs/2402.09353; LyCORIS, ``lycoris/functional/general.py``.
    """

    update: Update
    magnitude: Float[Array, " n"]
    eps: Float[Array, ""] | float = 0.0
    axis: Literal["out", "in"] = field(default="out", metadata={"static": True})

    family: ClassVar[str] = "Normed"
    trained: ClassVar[tuple[str, ...]] = ("update", "magnitude")

    @property
    def reads_base(self) -> bool:
        """Always: the map is computed from the base's weight."""
        return True

    @property
    def transposed(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The flag of the inner update."""
        return self.update.transposed

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``((1 − s) + s·c, I, s·c ⊙ Δ)``, or with c on the right for input channels."""
        out_size, in_size = base.shape
        norms = self._norms(base) if base.precomputed is None else base.precomputed
        delta = self._delta(base, norms.dtype)
        c = strength * (self.magnitude / (norms + self.eps))
        if self.axis == "in":
            c = jnp.repeat(c, in_size // self.magnitude.shape[0])
        side, scaling = Diagonal(1 - strength + c), Diagonal(c)
        if self.axis == "out":
            return AffineMap(side, Identity(in_size), multiply(scaling, delta))
        return AffineMap(Identity(out_size), side, multiply(delta, scaling))

    @property
    def precomputed_from(self) -> tuple[Source, ...]:
        """The norms depend on the base."""
        return ("base",)

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, " n"]:
        """Returns the norms."""
        return self._norms(base)

    def _norms(self, base: Base) -> Float[Array, " n"]:
        """Returns the norms of ``W₀ + Δ``; NaN where they overflow, since c would be zero."""
        matrix = base.read("matrix")
        delta = self._delta(base, matrix.dtype)
        adapted = added(matrix, delta, stored=base.stored, is_transposed=base.is_transposed)
        if self.axis == "out":
            norms = jnp.linalg.norm(adapted, axis=1)
        else:
            channels = adapted.reshape(base.shape[0], self.magnitude.shape[0], -1)
            norms = jnp.sqrt(jnp.sum(channels * channels, axis=(0, 2)))
        # A norm that overflows must not turn a row into zeros.
        return jnp.where(jnp.isinf(norms), jnp.nan, norms)

    def _delta(self, base: Base, dtype: Any) -> Operator:
        """Returns Δ of the inner update."""
        return self.update.weight_map(base, jnp.ones((), dtype)).shift

    def with_transposed_weight(self) -> "Normed":
        """Returns the update with its inner update transposed."""
        return replace(self, update=self.update.with_transposed_weight())

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the update fits and only adds, and that the magnitude has the side's size."""
        if problem := self.update.misfit(shape):
            return problem
        if self.update.has_bias or self.update.reads_base or not _only_adds(self.update, shape):
            return (
                f"dora_scale is on {self.update.family}, expected an update that only adds to the "
                "weight"
            )
        if problem := mismatch({"the eps of dora_scale": (self.eps, ())}, shape):
            return problem
        found, (out_size, in_size) = self.magnitude.shape, shape
        if self.axis == "out":
            fits, expected = found == (out_size,), f"({out_size},)"
        else:
            fits = len(found) == 1 and 0 < found[0] and in_size % found[0] == 0
            expected = f"({in_size} / kernel,)"
        if fits:
            return None
        return f"dora_scale has shape {found}, expected {expected} from weight {shape}"

    def size(self) -> str:
        """The size of the inner update and the normed axis."""
        return f"{self.update.family} {self.update.size()} normed by {self.axis}put"


def _only_adds(update: Update, shape: tuple[int, int]) -> bool:
    """Whether an update is ``W ↦ W + Δ``, determined from shapes alone."""

    def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        dtype = np.float32 if is_float else jnp.result_type(leaf)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return _map_of.eval_shape(jax.tree.map(abstract, update), shape).is_shift


# `jit` caches the trace: a base has many sites of the same shape.
@partial(jax.jit, static_argnums=1)
def _map_of(update: Update, shape: tuple[int, int]) -> AffineMap:
    """Returns the map of an update that does not read the base."""
    return update.weight_map(Base(None, shape), jnp.ones((), np.float32))
