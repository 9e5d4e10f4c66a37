"""PEANuT: a small network that computes Δ from the base's weight."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import LowRank
from jaxmix.pytrees import register_dataclass

__all__ = ["ACTIVATIONS", "PEANuT"]


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _laplace(x: Array) -> Array:
    return 0.5 * (1 + jax.scipy.special.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))


# By their names in transformers, with its constants. PReLU's slope is a constant here.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    **dict.fromkeys(("gelu", "gelu_python"), _gelu),
    **dict.fromkeys(
        ("gelu_accurate", "gelu_fast", "gelu_new", "gelu_python_tanh", "gelu_pytorch_tanh"),
        _gelu_tanh,
    ),
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10, 10),
    "hardswish": jax.nn.hard_swish,
    "laplace": _laplace,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "prelu": lambda x: jax.nn.leaky_relu(x, 0.25),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


@register_dataclass
@dataclass(frozen=True, eq=False)
class PEANuT(Update):
    """PEANuT: ``W' = W + γ·B f(W₀)``, where f is a network applied to the base's columns.

    It starts with ``h = σ(A W₀)``. Each encoder computes ``h ← σ(E h)``, then each decoder computes
    ``h ← σ(D h) + h'``, where h' is the input of the corresponding encoder (the last encoder
    belongs to the first decoder). ``f(W₀)`` is the final h (r, in).

    Strength s: ``W' = W + s·γ·B f(W₀)``.

    Args:
        a: A (r, out), PEFT's ``peanut_A``.
        b: B (out, r), PEFT's ``peanut_B``.
        encoders: The matrices E (r, r), in order of application.
        decoders: The matrices D (r, r), as many as encoders.
        scale: γ, PEFT's ``scaling``.
        activation: σ, one of `ACTIVATIONS`.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> update = PEANuT(jnp.ones((1, 1)), jnp.full((1, 1), 3.0))
        >>> base = Base(jnp.array([[2.0, -2.0]]), (1, 2))
        >>> update.weight_map(base, jnp.ones(())).shift.dense().tolist()
        [[6.0, 0.0]]

    Source: https://arxiv.org/abs/2410.01870; ``peft/tuners/peanut/layer.py``.
    """

    a: Float[Array, "r out"]
    b: Float[Array, "out r"]
    encoders: tuple[Float[Array, "r r"], ...] = ()
    decoders: tuple[Float[Array, "r r"], ...] = ()
    scale: Float[Array, ""] | float = 1.0
    activation: str = field(default="relu", metadata={"static": True})

    family: ClassVar[str] = "PEANuT"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "encoders", "decoders")

    @property
    def reads_base(self) -> bool:
        """Always: the map is computed from the base's weight."""
        return True

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, sγ·B f(W₀))``, where Δ has low rank."""
        act, skips = ACTIVATIONS[self.activation], []
        h = act(jnp.asarray(self.a) @ base.read("matrix"))
        for encoder in self.encoders:
            skips.append(h)
            h = act(jnp.asarray(encoder) @ h)
        for decoder in self.decoders:
            h = act(jnp.asarray(decoder) @ h) + skips.pop()
        return shift(LowRank(strength * self.scale * jnp.asarray(self.b), h))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that the layers have one rank, the weight's outputs, and pair up."""
        if len(self.encoders) != len(self.decoders):
            found = f"{len(self.encoders)} encoders and {len(self.decoders)} decoders"
            return f"{found}, expected equal numbers"
        factors: dict[str, tuple[Array | float | None, tuple[int | str, ...]]] = {
            "peanut_A": (self.a, ("r", shape[0])),
            "peanut_B": (self.b, (shape[0], "r")),
            "scale": (self.scale, ()),
        }
        for name, layers in (("encoders", self.encoders), ("decoders", self.decoders)):
            factors |= {f"peanut_{name}.{i}": (x, ("r", "r")) for i, x in enumerate(layers)}
        checked: ExpectedShapes = dict(factors)
        return mismatch(checked, shape)

    def size(self) -> str:
        """The rank and the depth."""
        depth = len(self.encoders)
        return f"rank {self.a.shape[0]}" + (f", depth {depth}" if depth else "")
