"""LoRA, a low-rank term, and DoRA, which also rescales each row to a trained norm."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import Source, Update, mismatch
from jaxmix.operators import Dense, Diagonal, Identity, LowRank, multiply
from jaxmix.operators.adding import added
from jaxmix.pytrees import register_dataclass

__all__ = ["LoRA"]


@register_dataclass
@dataclass(frozen=True, eq=False)
class LoRA(Update):
    """LoRA: ``W' = W + γ·B A``; with a magnitude m, DoRA: ``W' = c ⊙ (W + γ·B A)``.

    DoRA's ``c = m / ‖W₀ + γ·B A‖`` uses the norm of each output row. It reads the base's weight W₀
    regardless of earlier updates, as PEFT's forward does. For an embedding the norm of each of the
    D dimensions is taken over the vocabulary, so c scales columns.

    With ``lora_bias`` the bias is ``b' = b + γ·bias``. DoRA leaves the base's bias b₀ unchanged and
    scales what other updates added to it: ``b' = b₀ + c ⊙ (b − b₀ + γ·bias)``. Embeddings have no
    bias.

    Strength s: ``W' = W + s·γ·B A``. DoRA interpolates linearly,
    ``W' = (1 − s)·W + s·c ⊙ (W + γ·B A)``, and so does its bias.

    Gradients flow through DoRA's norm, whereas PEFT treats it as a constant in training. PEFT does
    not allow DoRA and ``lora_bias`` in one adapter.

    Args:
        a: A (r, in), PEFT's ``lora_A``. A convolution's is flattened to (r, in·k), an embedding's
            (W is (V, D)) is the transposed ``lora_embedding_B``, (r, D).
        b: B (out, r), PEFT's ``lora_B``; an embedding's is the transposed ``lora_embedding_A``.
        scale: γ = alpha/rank, or alpha/√rank with rslora.
        magnitude: m (out,), or (D,) for an embedding; None without DoRA.
        bias: The bias (out,) of ``lora_bias``; None if absent.
        kernel: The convolution's spatial shape, () if there is none; see `for_export`.
        embedding: Whether the site is an embedding.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

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
    for_export: ClassVar[tuple[str, ...]] = ("kernel",)

    @property
    def reads_base(self) -> bool:
        """Whether it is a DoRA."""
        return self.magnitude is not None

    @property
    def has_bias(self) -> bool:
        """Whether there is a ``lora_bias``. DoRA alone leaves the base's bias unchanged."""
        return self.bias is not None

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·BA)``, or DoRA's ``((1 − s) + s·c, I, s·c ⊙ γ·BA)``."""
        if self.magnitude is None:
            return shift(self._delta(strength))
        out_size, in_size = base.shape
        c = strength * self._rescaling(base)
        side, scaling = Diagonal(1 - strength + c), Diagonal(c)
        if self.embedding:
            return AffineMap(Identity(out_size), side, multiply(self._delta(1), scaling))
        return AffineMap(side, Identity(in_size), multiply(scaling, self._delta(1)))

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``b + sγ·bias``, or DoRA's ``((1 − s) + s·c, I, s·((1 − c) ⊙ b₀ + c ⊙ γ·bias))``."""
        out_size = base.shape[0]
        added = None if self.bias is None else self.scale * self.bias[:, None]
        if self.magnitude is None or self.embedding:
            return identity((out_size, 1)) if added is None else shift(Dense(strength * added))
        c = self._rescaling(base)[:, None]
        target = base.read("bias") * (1 - c) + (0 if added is None else c * added)
        side = Diagonal(1 - strength + strength * c[:, 0])
        return AffineMap(side, Identity(1), Dense(strength * target))

    def _delta(self, strength: Float[Array, ""] | float) -> LowRank:
        """Returns ``sγ·BA``."""
        return LowRank(self.b, self.a).scaled(strength * self.scale)

    @property
    def precomputed_from(self) -> tuple[Source, ...] | None:
        """DoRA's norms depend on the base."""
        return None if self.magnitude is None else ("base",)

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, " norms"]:
        """Returns DoRA's norms."""
        return self._norms(base)

    def _norms(self, base: Base) -> Float[Array, " norms"]:
        """Returns the norms of ``W₀ + γ·BA``; NaN where they overflow, since c would be zero."""
        matrix = base.read("matrix")
        adapted = added(
            matrix, self._delta(1), stored=base.stored, is_transposed=base.is_transposed
        )
        norms = jnp.linalg.norm(adapted, axis=0 if self.embedding else 1)
        return jnp.where(jnp.isinf(norms), jnp.nan, norms)

    def _rescaling(self, base: Base) -> Float[Array, " norms"]:
        """Returns DoRA's c."""
        norms = self._norms(base) if base.precomputed is None else base.precomputed
        return self.magnitude / norms  # pyright: ignore[reportOptionalOperand]

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that B A, the magnitude and the bias fit the weight."""
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
        """The rank, and whether it is a DoRA."""
        return f"rank {self.a.shape[0]}" + (" DoRA" if self.magnitude is not None else "")
