"""SuperTuning: a sparse update of the base's largest or smallest weights, and optionally a LoRA."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.families.positions import as_int32
from jaxmix.operators import LowRank, Sparse, add
from jaxmix.pytrees import register_dataclass

__all__ = ["SuperTuning"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class SuperTuning(Update):
    """SuperTuning: ``W' = W + S + γ·B A``, where S is sparse; B A is optional ("Supra").

    Strength s: ``W' = W + s·(S + γ·B A)``.

    Args:
        values: The non-zero entries of S (n,), PEFT's ``supertuning_values``.
        positions: Their flat positions row·in + column (n,), PEFT's ``supertuning_indices``.
        scale: γ = alpha/r.
        a: A (r, in), PEFT's ``supertuning_lora_A``; None if absent.
        b: B (out, r), PEFT's ``supertuning_lora_B``; None if absent.
        sparsity: The share of the weight that is unchanged, from which PEFT computes n; None if
            unknown. `export` needs it, the map does not.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight or some positions are
            outside it.

    Example:
        >>> update = SuperTuning(jnp.ones(1), jnp.array([1]))
        >>> update.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    Source: ``peft/tuners/supertuning/layer.py``.
    """

    values: Float[Array, " n"]
    positions: Int[Array, " n"]
    scale: Float[Array, ""] | float = 1.0
    a: Float[Array, "r in"] | None = None
    b: Float[Array, "out r"] | None = None
    sparsity: float | None = field(default=None, metadata={"static": True})

    family: ClassVar[str] = "SuperTuning"
    trained: ClassVar[tuple[str, ...]] = ("values", "a", "b")

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(S + γ·B A))``."""
        in_size, positions = base.shape[1], jnp.asarray(self.positions)
        # Flat positions may need more than 32 bits or be stored in fewer; rows and columns are
        # int32.
        if positions.dtype.itemsize < 4:
            positions = as_int32(positions)
        indices = as_int32(jnp.stack([positions // in_size, positions % in_size]))
        delta = Sparse(strength * self.values, indices, *base.shape)
        if self.a is None or self.b is None:
            return shift(delta)
        return shift(add(delta, LowRank(self.b, self.a).scaled(strength * self.scale)))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is one value per position inside W, and that B A has its sizes.

        Traced positions cannot be checked; JAX drops those outside.
        """
        out_size, in_size = shape
        factors: ExpectedShapes = {
            "supertuning_values": (self.values, ("n",)),
            "supertuning_indices": (self.positions, ("n",)),
            "supertuning_lora_A": (self.a, ("r", in_size)),
            "supertuning_lora_B": (self.b, (out_size, "r")),
            "scale": (self.scale, ()),
        }
        if problem := mismatch(factors, shape):
            return problem
        if isinstance(self.positions, Tracer) or self.values.size == 0:
            return None
        positions, count = np.asarray(self.positions), out_size * in_size
        if positions.min() >= 0 and positions.max() < count:
            has_int64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
            if has_int64 or positions.max() <= np.iinfo(np.int32).max:
                return None
            return (
                f"supertuning_indices reach {positions.max()}, which does not fit 32 bits. Call "
                "jax.config.update('jax_enable_x64', True)"
            )
        return (
            f"supertuning_indices go from {positions.min()} to {positions.max()}, expected from 0 "
            f"to {count - 1} from weight {shape}"
        )

    def size(self) -> str:
        """The number of entries, and the rank of the LoRA."""
        rank = "" if self.a is None else f" and rank {self.a.shape[0]}"
        return f"{self.values.shape[0]} entries{rank}"
