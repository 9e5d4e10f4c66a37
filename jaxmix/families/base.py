"""What every family is: an `Update`, the parameters of one adapter at one site."""

from typing import ClassVar

from jaxtyping import Array, Float

from jaxmix.affine import AffineMap, Base, identity

__all__ = ["Update"]


class Update:
    """What one adapter does at one site, as an affine map of its weight and one of its bias.

    A family is a frozen dataclass, registered as a pytree: its factors (and its scale) are
    children, its config is static. It says which operators its parameters make; how they are run it
    does not know. The arrays arrive in the dtype of the arithmetic, cast by whoever runs the map.

    Attributes:
        family: the name by which people call it.
        reads_base: whether the map needs the base's own weight (``base.matrix``).
        transposed: whether PyTorch stores this site's weight as (in, out), as GPT-2's Conv1D does.
    """

    family: ClassVar[str]
    reads_base: ClassVar[bool] = False
    transposed: ClassVar[bool] = False

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
        """Whether it changes the bias."""
        return False

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a weight of this shape, in words, or None.

        Args:
            shape: (out, in) of the weight as a matrix.
        """
        raise NotImplementedError

    def size(self) -> str:
        """Its size in a word or two, for people: ``rank 8``."""
        raise NotImplementedError


def mismatch(found: dict[str, tuple[int, ...]], expected: tuple[object, ...], shape: object) -> str:
    """The words of a factor that does not fit.

    Args:
        found: the factors' names and shapes.
        expected: the shapes that would have fitted, one a factor.
        shape: the weight's own, (out, in).

    Returns:
        One line: ``b has shape (8, 4), expected (6, 4) from weight (6, 5)``.
    """
    said = [
        f"{name} has shape {have}, expected {want}"
        for (name, have), want in zip(found.items(), expected, strict=True)
        if have != want
    ]
    return f"{'; '.join(said)} from weight {shape}"
