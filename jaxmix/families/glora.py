"""GLoRA: the weight, and the bias, are rescaled and shifted, each by factors of some form."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.families.base import ExpectedShapes, Update, mismatch
from jaxmix.operators import Dense, Identity, LowRank, Operator, Zero, add

__all__ = ["GLoRA"]

Path = tuple[Float[Array, "..."], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GLoRA(Update):
    """GLoRA: ``W' = W + W₀ ⊙ A + B`` and ``b' = b + b₀ ⊙ D + E + W₀ C``.

    W₀ and b₀ are the base's own, whatever came before. With `on_input` A is multiplied and not
    taken entry by entry, ``W' = W + W A + B``, as LyCORIS has it; of a convolution it then acts on
    the channels.

    Each path is () for none, a pair of factors whose product it is, or one array that is spread: a
    vector or a single number.

    Strength s: ``W' = W + s·(W₀ ⊙ A + B)``, and so the bias.

    Args:
        a: A: (out, r) and (r, in); or (out, 1); or (1,). With `on_input` (in, r) and (r, in).
        b: B: (out, r) and (r, in); or (out, 1); or (1,).
        c: C: (in, r) and (r, 1); or (in, 1).
        d: D: (out,) or (1,).
        e: E: (out,) or (1,).
        on_input: Whether A is multiplied from the right.

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

    a: Path = ()
    b: Path = ()
    c: Path = ()
    d: Path = ()
    e: Path = ()
    on_input: bool = field(default=False, metadata={"static": True})

    family: ClassVar[str] = "GLoRA"
    trained: ClassVar[tuple[str, ...]] = ("a", "b", "c", "d", "e")

    @property
    def reads_base(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """For A, C and D."""
        return bool((self.a and not self.on_input) or self.c or self.d)

    @property
    def has_bias(self) -> bool:
        """With C, D or E."""
        return bool(self.c or self.d or self.e)

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, I, s·(W₀ ⊙ A + B))``, or ``(I, I + s·Aᵀ, s·B)``."""
        (out_size, in_size), plus = base.shape, _added(self.b, base.shape, strength)
        if not self.a:
            return shift(plus)
        if not self.on_input:
            return shift(add(Dense(strength * base.read("matrix") * _spread(self.a)), plus))
        down, up = (jnp.asarray(x) for x in self.a)
        points = in_size // down.shape[0]
        if points > 1:
            eye = jnp.eye(points, dtype=down.dtype)
            down, up = jnp.kron(down, eye), jnp.kron(up, eye)
        right = add(Identity(in_size), LowRank(down, up).T.scaled(strength))
        return AffineMap(Identity(out_size), right, plus)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """``(I, 1, s·(b₀ ⊙ D + E + W₀ C))``."""
        shape = (base.shape[0], 1)
        if not self.has_bias:
            return identity(shape)
        moved = jnp.zeros(shape, jnp.result_type(*self.c, *self.d, *self.e))
        if self.c:
            moved = moved + base.read("matrix") @ _spread(self.c)
        if self.d:
            moved = moved + base.read("bias") * jnp.asarray(self.d[0])[:, None]
        if self.e:
            moved = moved + jnp.asarray(self.e[0])[:, None]
        return shift(Dense(strength * moved))

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Checks that every path has the weight's, or the bias's, sizes."""
        out_size, in_size = shape
        for name, path in zip("ABCDE", (self.a, self.b, self.c, self.d, self.e), strict=True):
            least = 2 if name == "A" and self.on_input and path else 0
            if not least <= len(path) <= 2:
                wanted = "2" if least else "2 at the most"
                return f"glora_{name} has {len(path)} factors, expected {wanted}"
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
        """The paths that there are, and the rank of those that have one."""
        named = {"A": self.a, "B": self.b, "C": self.c, "D": self.d, "E": self.e}
        paths = "".join(name for name, path in named.items() if path)
        ranks = [len(path[1]) for path in named.values() if len(path) == 2]
        return (f"rank {max(ranks)} " if ranks else "") + (paths or "nothing")


def _spread(path: Path) -> Array:
    """A path as a matrix, or as what broadcasts to one."""
    first = jnp.asarray(path[0])
    if len(path) == 2:
        return first @ jnp.asarray(path[1])
    return first if first.ndim == 2 else first[:, None]


def _added(path: Path, shape: tuple[int, int], strength: Array) -> Operator:
    """``s·B``: of rank one where a vector or a number is spread."""
    if not path:
        return Zero(*shape)
    first = strength * jnp.asarray(path[0])
    if len(path) == 2:
        return LowRank(first, jnp.asarray(path[1]))
    column = jnp.broadcast_to(first.reshape(-1, 1), (shape[0], 1))
    return LowRank(column, jnp.ones((1, shape[1]), first.dtype))


def _rows(path: Path, in_size: int) -> int:
    """How many inputs a multiplied A acts on: the columns, or a convolution's channels."""
    rows = path[0].shape[0] if path and path[0].ndim else in_size
    return rows if rows and in_size % rows == 0 else in_size


def _expected(name: str, path: Path, rows: int, cols: int | None) -> ExpectedShapes:
    """The factors of one path by PEFT's names, and the shapes that fit."""
    if len(path) == 2:
        return {
            f"glora_{name}.Xd": (path[0], (rows, f"r{name}")),
            f"glora_{name}.Xu": (path[1], (f"r{name}", "in" if cols is None else cols)),
        }
    if not path:
        return {}
    is_number = path[0].shape == (1,) and name != "C"
    wanted = (1,) if is_number else (rows,) if cols is None else (rows, 1)
    return {f"glora_{name}.X": (path[0], wanted)}
