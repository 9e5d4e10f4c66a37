"""Normed updates: LyCORIS's weight decomposition, DoRA's idea over any additive update."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Diagonal, Identity, multiply

__all__ = ["Normed"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Normed(Update):
    """An additive update Δ with a magnitude m: ``W' = c ⊙ (W + Δ)``, ``c = m / (‖W₀ + Δ‖ + ε)``.

    The norm is taken for each output, as in DoRA, or for each input channel over all outputs and
    the kernel's points: the two forms of LyCORIS. It reads the base's weight W₀ whatever came
    before, as `LoRA` with a magnitude does. The bias stays.

    Strength s goes along the line: ``W' = (1 − s)·W + s·c ⊙ (W + Δ)``. LyCORIS's multiplier moves
    c alone, ``((1 − s) + s·c) ⊙ (W + Δ)``, so that Δ is there at 0 too; at 1 both are the same.

    Args:
        update: Δ: a LoRA, LoHa, LoKr, or another update that adds to the weight and does no more.
        magnitude: m (out,), or (channels,) of the inputs; LyCORIS's ``dora_scale``.
        eps: ε, which LyCORIS takes for the smallest step of its dtype.
        axis: whether m has a number for each output ("out") or for each input channel ("in").

    Raises:
        ShapeError: by `compose`, where the update or the magnitude does not fit the weight.

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
    reads_base: ClassVar[bool] = True

    @property
    def transposed(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the update is."""
        return self.update.transposed

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``((1 − s) + s·c, I, s·c ⊙ Δ)``, or that on the right."""
        (out_size, in_size), matrix = base.shape, base.read("matrix")
        delta = self.update.weight_map(base, jnp.ones((), matrix.dtype)).shift
        adapted = delta.added_to(matrix)
        if self.axis == "out":
            norms = jnp.linalg.norm(adapted, axis=1)
        else:
            channels = adapted.reshape(out_size, self.magnitude.shape[0], -1)
            norms = jnp.sqrt(jnp.sum(channels * channels, axis=(0, 2)))
        # An infinite norm is one that its dtype can't hold: it must not make a row of zeros.
        norms = jnp.where(jnp.isinf(norms), jnp.nan, norms)
        c = strength * (self.magnitude / (norms + self.eps))
        if self.axis == "in":
            c = jnp.repeat(c, in_size // self.magnitude.shape[0])
        line, turn = Diagonal(1 - strength + c), Diagonal(c)
        if self.axis == "out":
            return AffineMap(line, Identity(in_size), multiply(turn, delta))
        return AffineMap(Identity(out_size), line, multiply(delta, turn))

    def turned(self) -> "Normed":
        """With the update turned."""
        return replace(self, update=self.update.turned())

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether the update fits, adds and does no more, and the magnitude has the side's size."""
        if said := self.update.misfit(shape):
            return said
        if self.update.has_bias or self.update.reads_base or not _adds(self.update, shape):
            return f"dora_scale over {self.update.family}, expected an update that adds to W alone"
        if said := mismatch({"dora_scale's eps": (self.eps, ())}, shape):
            return said
        found, (out_size, in_size) = self.magnitude.shape, shape
        if self.axis == "out":
            fits, wanted = found == (out_size,), f"({out_size},)"
        else:
            fits = len(found) == 1 and 0 < found[0] and in_size % found[0] == 0
            wanted = f"({in_size} / kernel,)"
        if fits:
            return None
        return f"dora_scale has shape {found}, expected {wanted} from weight {shape}"

    def size(self) -> str:
        """The update's size."""
        return f"{self.update.family} {self.update.size()} normed by {self.axis}put"


def _adds(update: Update, shape: tuple[int, int]) -> bool:
    """Whether an update is ``W ↦ W + Δ``, as seen from shapes alone."""

    def outline(leaf: Any) -> jax.ShapeDtypeStruct:
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        dtype = np.float32 if is_float else jnp.result_type(leaf)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return _outlined.eval_shape(jax.tree.map(outline, update), shape).is_shift


# Under `jit`, since what is traced is then kept: a base has many sites of one shape.
@partial(jax.jit, static_argnums=1)
def _outlined(update: Update, shape: tuple[int, int]) -> AffineMap:
    """The update's map."""
    return update.weight_map(Base(None, shape), jnp.ones((), np.float32))
