"""GLoRA: rescales and shifts the weight and the bias, by support tensors of several forms."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import Dense, Identity, LowRank, Operator, Zero, add
from jaxmix.pytrees import register_dataclass

__all__ = ["GLoRA"]

SupportTensor = tuple[Float[Array, "..."], ...]


@register_dataclass
@dataclass(frozen=True, eq=False)
class GLoRA(Update):
    """GLoRA: ``W' = W + W₀ ⊙ A + B`` and ``b' = b + b₀ ⊙ D + E + W₀ C``.

    W₀ and b₀ are the base's own leaves, regardless of earlier updates. With `on_input` A is a
    matrix factor, ``W' = W + W A + B``, as in LyCORIS. For a convolution it acts on the channels.

    Each support tensor (A to E) is () if absent, a pair of factors to multiply, or a single array
    to broadcast: a vector or a number.

    Strength s: ``W' = W + s·(W₀ ⊙ A + B)``, and likewise for the bias.

    Args:
        a: A: (out, r) and (r, in); or (out, 1); or (1,). With `on_input` (in, r) and (r, in).
        b: B: (out, r) and (r, in); or (out, 1); or (1,).
        c: C: (in, r) and (r, 1); or (in, 1).
        d: D: (out,) or (1,).
        e: E: (out,) or (1,).
        on_input: Whether W is multiplied with A from the right.

    Raises:
        ShapeError: Raised by `compose` if the factors do not fit the weight.

    Example:
        >>> twice = GLoRA(a=(jnp.ones(1),), b=(jnp.array([[3.0]]),))
        >>> base = Base(jnp.array([[5.0, 7.0]]), (1, 2))
        >>> twice.weight_map(base, jnp.ones(()))(base.read("matrix")).tolist()
        [[13.0, 17.0]]

    Source: https://arxiv.org/abs/2306.07967; ``peft/tuners/glora/layer.py``; LyCORIS,
    ``lycoris/modules/glora.py``.
    """

    a: SupportTensor = ()
    b: SupportTensor = ()
    c: SupportTensor = ()
    d: SupportTensor = ()
    e: SupportTensor = ()
    on_input: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "GLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "e")

    @property
    def reads_base(self) -> bool:
        """Whether there is an A (unless `on_input`), a C or a D."""
        return bool((self.a and not self.on_input) or self.c or self.d)

    @property
    def has_bias(self) -> bool:
        """Whether there is a C, a D or an E."""
        return bool(self.c or self.d or self.e)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(W₀ ⊙ A + B))``, or ``(I, I + s·Aᵀ, s·B)``."""
        (out_size, in_size), added = base.shape, _added(self.b, base.shape, strength)
        if not self.a:
            return shift(added)
        if not self.on_input:
            return shift(add(Dense(strength * base.read("matrix") * _dense(self.a)), added))
        down, up = (jnp.asarray(x) for x in self.a)
        points = in_size // down.shape[0]
        if points > 1:
            eye = jnp.eye(points, dtype=down.dtype)
            down, up = jnp.kron(down, eye), jnp.kron(up, eye)
        right = add(Identity(in_size), LowRank(down, up).T.scaled(strength))
        return AffineMap(Identity(out_size), right, added)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, 1, s·(b₀ ⊙ D + E + W₀ C))``."""
        shape = (base.shape[0], 1)
        if not self.has_bias:
            return identity(shape)
        added = jnp.zeros(shape, jnp.result_type(*self.c, *self.d, *self.e))
        if self.c:
            added = added + base.read("matrix") @ _dense(self.c)
        if self.d:
            added = added + base.read("bias") * jnp.asarray(self.d[0])[:, None]
        if self.e:
            added = added + jnp.asarray(self.e[0])[:, None]
        return shift(Dense(strength * added))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that every support tensor has the sizes of the weight or of the bias."""
        out_size, in_size = shape
        for name, tensor in zip("ABCDE", (self.a, self.b, self.c, self.d, self.e), strict=True):
            least = 2 if name == "A" and self.on_input and tensor else 0
            if not least <= len(tensor) <= 2:
                expected = "2" if least else "at most 2"
                return f"glora_{name} has {len(tensor)} factors, expected {expected}"
        rows = _rows(self.a, in_size) if self.on_input else out_size
        factors = {
            **_expected("A", self.a, rows, rows if self.on_input else in_size),
            **_expected("B", self.b, out_size, in_size),
            **_expected("C", self.c, in_size, 1),
            **_expected("D", self.d, out_size, None),
            **_expected("E", self.e, out_size, None),
        }
        return mismatch(factors, shape)

    def size(self) -> str:
        """The largest rank and the names of the support tensors that are present."""
        named = {"A": self.a, "B": self.b, "C": self.c, "D": self.d, "E": self.e}
        names = "".join(name for name, tensor in named.items() if tensor)
        ranks = [len(tensor[1]) for tensor in named.values() if len(tensor) == 2]
        return (f"rank {max(ranks)} " if ranks else "") + (names or "nothing")


def _dense(tensor: SupportTensor) -> Array:
    """Returns a support tensor as a matrix, or as an array that broadcasts to one."""
    first = jnp.asarray(tensor[0])
    if len(tensor) == 2:
        return first @ jnp.asarray(tensor[1])
    return first if first.ndim == 2 else first[:, None]


def _added(tensor: SupportTensor, shape: tuple[int, int], strength: Array) -> Operator:
    """Returns ``s·B``, which has rank one if B is a vector or a number."""
    if not tensor:
        return Zero(*shape)
    first = strength * jnp.asarray(tensor[0])
    if len(tensor) == 2:
        return LowRank(first, jnp.asarray(tensor[1]))
    column = jnp.broadcast_to(first.reshape(-1, 1), (shape[0], 1))
    return LowRank(column, jnp.ones((1, shape[1]), first.dtype))


def _rows(tensor: SupportTensor, in_size: int) -> int:
    """Returns the number of inputs of an A with `on_input`: all columns, or the channels."""
    rows = tensor[0].shape[0] if tensor and tensor[0].ndim else in_size
    return rows if rows and in_size % rows == 0 else in_size


def _expected(name: str, tensor: SupportTensor, rows: int, cols: int | None) -> ExpectedShapes:
    """Returns the factors of a support tensor by PEFT's names, with the shapes that fit."""
    if len(tensor) == 2:
        return {
            f"glora_{name}.Xd": (tensor[0], (rows, f"r{name}")),
            f"glora_{name}.Xu": (tensor[1], (f"r{name}", "in" if cols is None else cols)),
        }
    if not tensor:
        return {}
    is_number = tensor[0].shape == (1,) and name != "C"
    expected = (1,) if is_number else (rows,) if cols is None else (rows, 1)
    return {f"glora_{name}.X": (tensor[0], expected)}
