"""What every family is: an `Update`, the parameters of one adapter at one site."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity

__all__ = ["Chain", "Factors", "Leaf", "Update", "joint_flag", "maps", "mismatch"]

Leaf = Literal["weight", "bias"]

# By name, factors and the shapes that they should have; a letter is a size that is free.
Factors = Mapping[str, tuple[Array | float | None, tuple[int | str | Fraction, ...]]]


class Update:
    """What one adapter does at one site, as an affine map of its weight and one of its bias.

    A family is a frozen dataclass, registered as a pytree: its factors (and its scale) are
    children, its config is static. It says which operators its parameters make; how they are run it
    does not know. The arrays arrive in the dtype of the arithmetic, cast by whoever runs the map.

    Attributes:
        family: the name by which people call it.
        trained: the names of the fields that PEFT trains, or would if it had the family; one that
            holds None is not there, and of one that holds numbers of places nothing is trained.
        reads_base: whether its maps need the base's own leaves (``base.matrix``, ``base.bias``).
        is_base_side: whether it changes the base itself, which updates after it then read.
        keeps_tie: whether at a tied embedding it changes both sides, as PEFT's trained tokens do;
            all others change the side that they are for.
        is_copy: whether it is there once more for a head that is tied to an embedding, and has no
            leaf then; it is left out where it finds none.
        transposed: whether PyTorch stores this site's weight as (in, out), as GPT-2's Conv1D does;
            None if that is unknown, as in a file of PEFT's, whose one flag holds for some sites.
    """

    family: ClassVar[str]
    trained: ClassVar[tuple[str, ...]] = ()
    reads_base: ClassVar[bool] = False
    is_base_side: ClassVar[bool] = False
    keeps_tie: ClassVar[bool] = False
    is_copy: bool = False
    transposed: bool | None = False

    def weight_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The map of the weight (out, in): the identity at strength 0, the file's own at 1."""
        return identity(base.shape)

    def bias_map(self, base: Base, strength: Float[Array, ""]) -> AffineMap:
        """The map of the bias as a matrix (out, 1)."""
        return identity((base.shape[0], 1))

    @property
    def has_weight(self) -> bool:
        """Whether it changes the weight."""
        return True

    @property
    def has_bias(self) -> bool:
        """Whether it changes the bias by itself, and not only what others added to it."""
        return False

    @property
    def turns_bias(self) -> bool:
        """Whether it maps a bias where there is one, linearly, and so needs none (IA3, RoAd)."""
        return False

    def rebased(self, base: Base, strength: Float[Array, ""]) -> Base:
        """The base as updates after this one read it: another one if this is base-side."""
        if not self.is_base_side:
            return base
        matrix, bias = base.matrix, base.bias
        if matrix is not None and self.has_weight:
            matrix = self.weight_map(base, strength)(matrix)
        if bias is not None and self.has_bias:
            bias = self.bias_map(base, strength)(bias)
        return Base(matrix, base.shape, bias)

    def turned(self) -> "Update":
        """The same at a site whose weight PyTorch stores as (in, out): whole weights lie so too."""
        return self

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a weight of this shape, in words, or None.

        Args:
            shape: (out, in) of the weight as a matrix.
        """
        raise NotImplementedError

    def size(self) -> str:
        """Its size in a word or two, for people: ``rank 8``."""
        raise NotImplementedError


# What acts on one site: strengths and updates, in order of application.
Chain = tuple[tuple[Any, Update], ...]


def joint_flag(flags: Iterable[bool | None]) -> bool | None:
    """What several updates at one site say together: True if one does, else None if one does.

    Args:
        flags: The updates' ``transposed``.

    Returns:
        Their disjunction, in which None is unknown.

    Example:
        >>> joint_flag([False, None]), joint_flag([None, True]), joint_flag([])
        (None, True, False)
    """
    found = set(flags)
    return True if True in found else None if None in found else False


def maps(word: Iterable[tuple[Any, Update]], base: Base, leaf: Leaf = "weight") -> list[AffineMap]:
    """The maps of a word of updates at one site, each read off the base that it is to read.

    Args:
        word: strengths and updates, the first one first.
        base: the pristine base. Whatever updates do, those after them read this one; only what a
            base-side update put into the base is there too, as PEFT has it.
        leaf: the leaf that is mapped.

    Returns:
        A map for each update, the first one first.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import Replace
        >>> word = [(1.0, Replace(jnp.ones((1, 2)))), (0.5, Replace(jnp.zeros((1, 2))))]
        >>> [one(jnp.full((1, 2), 7.0)).tolist() for one in maps(word, Base(None, (1, 2)))]
        [[[1.0, 1.0]], [[3.5, 3.5]]]
    """
    made: list[AffineMap] = []
    for strength, update in word:
        mapping = update.weight_map if leaf == "weight" else update.bias_map
        made.append(mapping(base, strength))
        base = update.rebased(base, strength)
    return made


def mismatch(factors: Factors, shape: tuple[int, int]) -> str | None:
    """The words for factors that do not fit, or None where all do.

    Args:
        factors: by name, each factor and the shape that it should have. A size that is a letter is
            free, but the same in all of them: the first factor with as many axes says which. A
            factor that is None is not there and fits.
        shape: the weight's own, (out, in).

    Returns:
        One line, or None: ``lora_B has shape (8, 4), expected (6, 4) from weight (6, 5)``.

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
        found = np.shape(factor)  # of a scale that is a number too
        if len(found) == len(dims):
            for dim, size in zip(dims, found, strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, size)
        expected = tuple(sizes.get(dim, dim) for dim in dims)
        if found != expected:
            text = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
            wrong.append(f"{name} has shape {found}, expected ({text})")
    return f"{'; '.join(wrong)} from weight {shape}" if wrong else None
