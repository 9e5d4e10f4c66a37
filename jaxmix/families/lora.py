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
@dataclass(frozen=True)
class LoRA(Update):
    """LoRA: ``W' = W + γ·B A``; with a magnitude m, DoRA: ``W' = c ⊙ (W + γ·B A)``.

    DoRA's ``c = m / ‖W₀ + γ·B A‖`` takes the norm of each output row, and reads the base's weight
    W₀ whatever came before, as PEFT's forward does; an embedding's norm is taken for each of its D
    dimensions over the vocabulary, so that ``c`` scales columns. The bias is left as it is, but for
    ``lora_bias``: ``b' = b + γ·bias``.

    Strength s: ``W' = W + s·γ·B A``; DoRA goes along the line, ``(1 − s)·W + s·c ⊙ (W + γ·B A)``.

    Args:
        a: A (r, in), PEFT's ``lora_A``. A convolution's is flattened to (r, in·k), an embedding's
            (W is (V, D)) is the transposed ``lora_embedding_B``, (r, D).
        b: B (out, r), PEFT's ``lora_B``; an embedding's is the transposed ``lora_embedding_A``.
        scale: γ = alpha/rank, or alpha/√rank with rslora.
        magnitude: m (out,), or (D,) for an embedding; None without DoRA.
        bias: (out,) of ``lora_bias``; None without.
        kernel: the convolution's spatial shape, () for none; what `export` needs, not the map.
        embedding: whether the site is an embedding.
        transposed: whether PyTorch stores the weight as (in, out): ``fan_in_fan_out``.

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
    transposed: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "LoRA"

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """DoRA's norm does."""
        return self.magnitude is not None

    @property
    def has_bias(self) -> bool:
        """With ``lora_bias``."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·BA)``, or DoRA's ``((1 − s) + s·c, I, s·c ⊙ γ·BA)``."""
        delta = LowRank(self.b, self.a).scaled(jnp.asarray(self.scale))
        if self.magnitude is None:
            return shift(delta.scaled(strength))
        assert base.matrix is not None
        over = 0 if self.embedding else 1
        c = self.magnitude / jnp.linalg.norm(base.matrix + delta.dense(), axis=over)
        line, turn = Diagonal(1 - strength + strength * c), Diagonal(strength * c)
        out_size, in_size = base.shape
        if self.embedding:
            return AffineMap(Identity(out_size), line, multiply(delta, turn))
        return AffineMap(line, Identity(in_size), multiply(turn, delta))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``b + sγ·bias``."""
        if self.bias is None:
            return identity((base.shape[0], 1))
        return shift(Dense((strength * self.scale * self.bias)[:, None]))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Whether B A, the magnitude and the bias have the weight's sizes."""
        (out_size, in_size), r = shape, self.a.shape[0]
        found, expected = {"lora_A": self.a.shape}, [(r, in_size)]
        found["lora_B"], expected = self.b.shape, [*expected, (out_size, r)]
        if self.magnitude is not None:
            found["lora_magnitude_vector"] = self.magnitude.shape
            expected.append((in_size if self.embedding else out_size,))
        if self.bias is not None:
            found["lora_B.bias"], expected = self.bias.shape, [*expected, (out_size,)]
        fits = list(found.values()) == expected
        return None if fits else mismatch(found, tuple(expected), shape)

    def size(self) -> str:
        """Its rank, and DoRA where it is."""
        return f"rank {self.a.shape[0]}" + (" DoRA" if self.magnitude is not None else "")
