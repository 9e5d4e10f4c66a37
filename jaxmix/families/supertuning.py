"""SuperTuning: a sparse update where the base's weights are largest, or smallest, and a LoRA."""

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

__all__ = ["SuperTuning"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SuperTuning(Update):
    """SuperTuning: ``W' = W + S + γ·B A``, with S sparse; B A only where it has a rank ("Supra").

    Strength s: ``W' = W + s·(S + γ·B A)``.

    Args:
        values: The non-zero entries of S (n,), PEFT's ``supertuning_values``.
        positions: Where they are (n,), row·in + column, PEFT's ``supertuning_indices``.
        scale: γ = alpha/r.
        a: A (r, in), PEFT's ``supertuning_lora_A``; None if absent.
        b: B (out, r), PEFT's ``supertuning_lora_B``; None if absent.
        sparsity: The part of the weight that is left as it is, from which PEFT computes n; what
            `export` needs, not the map. None where it is not known.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight, or positions lie
            beyond.

    Example:
        >>> one = SuperTuning(jnp.ones(1), jnp.array([1]))
        >>> one.weight_map(Base(None, (2, 2)), jnp.ones(())).shift.dense().tolist()
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
        # Positions may be beyond 32 bits, or in fewer; rows and columns are of 32.
        if positions.dtype.itemsize < 4:
            positions = as_int32(positions)
        places = as_int32(jnp.stack([positions // in_size, positions % in_size]))
        delta = Sparse(strength * self.values, places, *base.shape)
        if self.a is None or self.b is None:
            return shift(delta)
        return shift(add(delta, LowRank(self.b, self.a).scaled(strength * self.scale)))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that there is a value a position, the positions lie in W, and B A has its sizes.

        Where the positions are traced nobody can say where they lie, and JAX drops those outside.
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
            fits = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
            if fits or positions.max() <= np.iinfo(np.int32).max:
                return None
            return (
                f"supertuning_indices go to {positions.max()}, beyond 32 bits: they need "
                "jax.config.update('jax_enable_x64', True)"
            )
        return (
            f"supertuning_indices go from {positions.min()} to {positions.max()}, expected from 0 "
            f"on and below {count} from weight {shape}"
        )

    def size(self) -> str:
        """How many entries, and the rank beside them."""
        rank = "" if self.a is None else f" and rank {self.a.shape[0]}"
        return f"{self.values.shape[0]} entries{rank}"
