"""The base class of all families: an `Update` holds one adapter's parameters at one site."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity

__all__ = [
    "Chain",
    "ExpectedShapes",
    "Part",
    "Source",
    "Update",
    "joint_flag",
    "maps",
    "mismatch",
]

# The leaves of a site.
Part = Literal["weight", "bias"]

# What `Update.precompute` reads besides the update's own arrays.
Source = Literal["base", "strength"]

# Factors and their expected shapes, by name. A string stands for a size that may have any value.
ExpectedShapes = Mapping[str, tuple[Array | float | None, tuple[int | str | Fraction, ...]]]


class Update:
    """One adapter's change at one site: an affine map of the weight, and one of the bias.

    A family is a frozen dataclass registered as a pytree. Its factors and its scale are children,
    its configuration is static. It defines which operators are built from its parameters, and not
    how these are run. The code that runs a map first casts the arrays to the dtype of the
    arithmetic.

    Attributes:
        family: The name of the family, as it is commonly written.
        trained: The names of the fields that PEFT trains, or would train if it had the family.
            Fields that are None and integer arrays in these fields are not trained.
        for_export: The names of optional static fields that only writers of files read, such as a
            convolution's kernel or PEFT's seed. They affect neither the maps nor what fits.
        is_copy: Whether the update is a duplicate for a head that may be tied to an embedding. It
            is skipped if the head has no leaf of its own.
        transposed: Whether PyTorch stores this site's weight as (in, out), as GPT-2's Conv1D does.
            None if unknown, as in PEFT's files, which have a single flag for all sites.
    """

    family: ClassVar[str]
    trained: ClassVar[tuple[str, ...]] = ()
    for_export: ClassVar[tuple[str, ...]] = ()
    is_copy: bool = False
    transposed: bool | None = False

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """Returns the map of the weight (out, in).

        Args:
            base: The base's leaves; the matrix may be None unless `reads_base`.
            strength: Interpolates from the identity (0) to the trained map (1).
        """
        return identity(base.shape)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """Returns the map of the bias, a matrix (out, 1); see `weight_map`."""
        return identity((base.shape[0], 1))

    @property
    def reads_base(self) -> bool:
        """Whether the maps need the base's own leaves (``base.matrix``, ``base.bias``)."""
        return False

    @property
    def is_base_side(self) -> bool:
        """Whether the update changes the base itself, which later updates then read."""
        return False

    @property
    def keeps_tie(self) -> bool:
        """Whether the update changes both sides of a tied embedding, as trained tokens do in PEFT.

        All other updates change only the side at which they are.
        """
        return False

    @property
    def precomputed_from(self) -> tuple[Source, ...] | None:
        """What `precompute` reads besides the update's arrays; None without such a value."""
        return None

    def precompute(self, base: Base, strength: Float[Array, ""]) -> Float[Array, "..."]:
        """Returns a costly value that the map of the weight is made of: DoRA's norms, a rotation.

        `weight_map` takes it from ``base.precomputed``, or computes it if that is None.

        Args:
            base: The base's leaves; the matrix may be None unless `precomputed_from` has "base".
            strength: As in `weight_map`; ignored unless `precomputed_from` has "strength".
        """
        raise NotImplementedError

    @property
    def has_weight(self) -> bool:
        """Whether the update changes the weight."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether the update changes the base's bias, not just what other updates added to it."""
        return False

    @property
    def maps_bias(self) -> bool:
        """Whether the update maps an existing bias linearly but needs none (IA3, RoAd)."""
        return False

    def rebased(self, base: Base, strength: Float[Array, ""]) -> Base:
        """Returns the base that later updates read, which differs from `base` if `is_base_side`."""
        if not self.is_base_side:
            return base
        matrix, bias = base.matrix, base.bias
        if matrix is not None and self.has_weight:
            matrix = self.weight_map(base, strength)(matrix)
        if bias is not None and self.has_bias:
            bias = self.bias_map(base, strength)(bias)
        return Base(matrix, base.shape, bias, is_transposed=base.is_transposed)

    def decomposed(self, matrix: np.ndarray) -> "Update":
        """Returns the update with the part of the base's decomposition that it needs.

        Its maps are the same. NumPy computes the decomposition: compilers of accelerators take
        minutes for that of a weight, so code that runs maps there calls this first if the weight is
        known.

        Args:
            matrix: The base's weight (out, in), in float32 or wider.
        """
        return self

    @property
    def decomposes(self) -> bool:
        """Whether the maps decompose the base's weight."""
        return False

    def with_transposed_weight(self) -> "Update":
        """Returns the update for a weight that PyTorch stores as (in, out).

        Families that hold full weights transpose them; all others return themselves.
        """
        return self

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Describes why the update does not fit a weight.

        Args:
            shape: The shape (out, in) of the weight as a matrix.

        Returns:
            A message, or None if the update fits.
        """
        raise NotImplementedError

    def size(self) -> str:
        """Describes the update's size in a few words, such as ``rank 8``."""
        raise NotImplementedError


# The updates of one site with their strengths, in order of application.
Chain = tuple[tuple[Any, Update], ...]


def joint_flag(flags: Iterable[bool | None]) -> bool | None:
    """Combines the ``transposed`` flags of several updates at one site.

    Args:
        flags: The updates' ``transposed``.

    Returns:
        True if any flag is True, otherwise None (unknown) if any is None, otherwise False.

    Example:
        >>> joint_flag([False, None]), joint_flag([None, True]), joint_flag([])
        (None, True, False)
    """
    found = set(flags)
    return True if True in found else None if None in found else False


def maps(chain: Iterable[tuple[Any, Update]], base: Base, part: Part = "weight") -> list[AffineMap]:
    """Returns the affine map of each update of a chain at one site.

    Args:
        chain: Strengths and updates, in order of application.
        base: The unchanged base. Every update reads this base, no matter what earlier updates did,
            except that it sees the changes of earlier base-side updates, as in PEFT.
        part: Whether to return the maps of the weight or of the bias.

    Returns:
        One map per update, in order of application.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import Replace
        >>> chain = [(1.0, Replace(jnp.ones((1, 2)))), (0.5, Replace(jnp.zeros((1, 2))))]
        >>> [f(jnp.full((1, 2), 7.0)).tolist() for f in maps(chain, Base(None, (1, 2)))]
        [[[1.0, 1.0]], [[3.5, 3.5]]]
    """
    found: list[AffineMap] = []
    for strength, update in chain:
        map_of = update.weight_map if part == "weight" else update.bias_map
        found.append(map_of(base, strength))
        base = update.rebased(base, strength)
    return found


def mismatch(factors: ExpectedShapes, shape: tuple[int, int]) -> str | None:
    """Describes factors whose shapes do not fit each other or the weight.

    Args:
        factors: Each factor and its expected shape, by name. A size given as a string may have any
            value but must agree in all factors; the first factor with the right number of axes
            determines it. Factors that are None are skipped.
        shape: The weight's shape (out, in).

    Returns:
        A message such as ``lora_B has shape (8, 4), expected (6, 4) from weight (6, 5)``, or None
        if all factors fit.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.zeros((4, 5)), jnp.zeros((8, 4))
        >>> mismatch({"lora_A": (a, ("r", 5)), "lora_B": (b, (6, "r"))}, (6, 5))
        'lora_B has shape (8, 4), expected (6, 4) from weight (6, 5)'
    """
    sizes: dict[object, object] = {}
    wrong: list[str] = []
    for name, (factor, dims) in factors.items():
        if factor is None:
            continue
        found = np.shape(factor)  # the scale may be a Python float
        if len(found) == len(dims):
            for dim, size in zip(dims, found, strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, size)
        expected = tuple(sizes.get(dim, dim) for dim in dims)
        if found != expected:
            text = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
            wrong.append(f"{name} has shape {found}, expected ({text})")
    return f"{'; '.join(wrong)} from weight {shape}" if wrong else None
