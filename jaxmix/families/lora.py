"""LoRA and DoRA: a low-rank term, and with a magnitude a norm for each row."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import Update, mismatch
from jaxmix.operators import Dense, Diagonal, Identity, LowRank, multiply

__all__ = ["LoRA"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LoRA(Update):
    """LoRA: ``W' = W + γ·B A``; with a magnitude m, DoRA: ``W' = c ⊙ (W + γ·B A)``.

    DoRA's ``c = m / ‖W₀ + γ·B A‖`` takes the norm of each output row, and reads the base's weight
    W₀ whatever came before, as PEFT's forward does; an embedding's norm is taken for each of its D
    dimensions over the vocabulary, so that ``c`` scales columns. With ``lora_bias`` the bias is
    ``b' = b + γ·bias``. DoRA leaves the base's bias b₀ as it is and scales what others added to it:
    ``b' = b₀ + c ⊙ (b − b₀ + γ·bias)``; an embedding has none.

    Strength s: ``W' = W + s·γ·B A``; DoRA goes along the line, ``(1 − s)·W + s·c ⊙ (W + γ·B A)``,
    and so does its bias.

    Gradients go through DoRA's norm; PEFT holds it constant when it trains. DoRA with ``lora_bias``
    in one adapter PEFT refuses.

    Args:
        a: A (r, in), PEFT's ``lora_A``. A convolution's is flattened to (r, in·k), an embedding's
            (W is (V, D)) is the transposed ``lora_embedding_B``, (r, D).
        b: B (out, r), PEFT's ``lora_B``; an embedding's is the transposed ``lora_embedding_A``.
        scale: γ = alpha/rank, or alpha/√rank with rslora.
        magnitude: m (out,), or (D,) for an embedding; None without DoRA.
        bias: (out,) of ``lora_bias``; None without.
        kernel: the convolution's spatial shape, () for none; what `export` needs, not the map.
        embedding: whether the site is an embedding.
        transposed: whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: by `compose`, where the factors do not fit the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> update = LoRA(a=jnp.ones((1, 3)), b=jnp.ones((2, 1)), scale=0.5)
        >>> update.weight_map(Base(None, (2, 3)), jnp.ones(()))(jnp.zeros((2, 3))).tolist()
        [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]

    Source: https://arxiv.org/abs/2106.09685, https://arxiv.org/abs/2402.09353;
    ``peft/tuners/lora/layer.py``, ``peft/tuners/lora/dora.py``.
    """

    a: Float[Array, "r in"]
    b: Float[Array, "out r"]
    scale: Float[Array, ""] | float
    magnitude: Float[Array, " norms"] | None = None
    bias: Float[Array, " out"] | None = None
    kernel: tuple[int, ...] = field(default=(), metadata={"static": True})
    embedding: bool = field(default=False, metadata={"static": True})
    transposed: bool | None = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "LoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "magnitude", "bias")

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """DoRA does."""
        return self.magnitude is not None

    @property
    def has_bias(self) -> bool:
        """With ``lora_bias``. DoRA alone leaves the bias as the base has it."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·BA)``, or DoRA's ``((1 − s) + s·c, I, s·c ⊙ γ·BA)``."""
        if self.magnitude is None:
            return shift(self._delta(strength))
        out_size, in_size = base.shape
        c = strength * self._rescaling(base)
        line, turn = Diagonal(1 - strength + c), Diagonal(c)
        if self.embedding:
            return AffineMap(Identity(out_size), line, multiply(self._delta(1), turn))
        return AffineMap(line, Identity(in_size), multiply(turn, self._delta(1)))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``b + sγ·bias``, or DoRA's ``((1 − s) + s·c, I, s·((1 − c) ⊙ b₀ + c ⊙ γ·bias))``."""
        out_size = base.shape[0]
        added = None if self.bias is None else self.scale * self.bias[:, None]
        if self.magnitude is None or self.embedding:
            return identity((out_size, 1)) if added is None else shift(Dense(strength * added))
        c = self._rescaling(base)[:, None]
        moved = base.read("bias") * (1 - c) + (0 if added is None else c * added)
        line = Diagonal(1 - strength + strength * c[:, 0])
        return AffineMap(line, Identity(1), Dense(strength * moved))

    def _delta(self, strength: Float[Array, ""] | float) -> LowRank:
        """``sγ·BA``."""
        return LowRank(self.b, self.a).scaled(strength * self.scale)

    def _rescaling(self, base: Base) -> Float[Array, " norms"]:
        """DoRA's c; NaN where the norm is too large for its dtype, and c would be zero."""
        over = 0 if self.embedding else 1
        norms = jnp.linalg.norm(self._delta(1).added_to(base.read("matrix")), axis=over)
        norms = jnp.where(jnp.isinf(norms), jnp.nan, norms)
        return self.magnitude / norms  # pyright: ignore[reportOptionalOperand]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether B A, the magnitude and the bias have the weight's sizes."""
        out_size, in_size = shape
        factors = {
            "lora_A": (self.a, ("r", in_size)),
            "lora_B": (self.b, (out_size, "r")),
            "lora_magnitude_vector": (self.magnitude, (in_size if self.embedding else out_size,)),
            "lora_B.bias": (self.bias, (out_size,)),
            "scale": (self.scale, ()),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """Its rank, and DoRA where it is."""
        return f"rank {self.a.shape[0]}" + (" DoRA" if self.magnitude is not None else "")
