"""How one tensor is made: from the base's bytes, by the maps of the sites that lie in it."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap, fold
from jaxmix.apply import plan
from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.merging import blocks, rounding
from jaxmix.converters.merging.files import read_rows
from jaxmix.errors import CheckpointError
from jaxmix.families.base import Chain
from jaxmix.operators import Identity
from jaxmix.placement.form import Form

__all__ = ["Made", "Recipe", "Share", "UnwritableError"]

# The numbers of a run of rows; in float32, in which they are computed, 4 MB, which caches hold.
BLOCK = 1 << 20


class UnwritableError(CheckpointError):
    """Numbers that a merge would make are none, or none of the tensor's dtype."""


@dataclass(frozen=True, eq=False)
class Share:
    """What one site does to a tensor.

    Args:
        site: the site's name.
        word: strengths and updates, the first one first.
        form: how the tensor holds the site's weight, or its bias.
        base: the weight that the map of a bias reads; None for none.
        base_form: how that one holds it.
    """

    site: str
    word: Chain
    form: Form
    base: Stored | None = None
    base_form: Form | None = None


@dataclass(frozen=True, eq=False)
class Recipe:
    """A tensor that changes, and what each site does to it.

    Args:
        tensor: the base's tensor.
        shares: the sites in it, as a rule one; none, if it is only dequantized.
    """

    tensor: Stored
    shares: tuple[Share, ...]

    @property
    def dtype(self) -> np.dtype:
        """That of the result."""
        return np.dtype(FLOATS[self.tensor.dtype])

    @property
    def is_plain(self) -> bool:
        """Whether it is one site's, and lies as a matrix: it then may go by runs of rows."""
        # Updates see a bias as a column, whose rows are a tensor's only if it is a vector.
        is_column = math.prod(self.tensor.shape[1:]) == 1
        return len(self.shares) < 2 and all(
            share.form.is_plain and (share.form.part != "bias" or is_column)
            for share in self.shares
        )

    def prepared(self) -> "Prepared":
        """With its maps made; what reads the base reads it here, as a whole."""
        if not self.shares or not self.is_plain:
            return Prepared(self, None if self.shares else ())
        (share,) = self.shares
        leaf: Any = jax.ShapeDtypeStruct(self.tensor.shape, self.dtype)
        base = None
        if any(update.reads_base for _, update in share.word):
            leaf, base = _array(self.tensor), share.base and _array(share.base)
        maps = plan.made(leaf, base, share.word, share.form, share.base_form)
        return Prepared(self, tuple(blocks.light(step) for step in fold(list(maps))))


@dataclass(frozen=True, eq=False)
class Made:
    """A run of rows as it is to be written.

    Args:
        array: the rows, of the tensor's dtype.
        loss: what rounding them did; None where nothing is rounded.
    """

    array: np.ndarray
    loss: rounding.Loss | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recipe with its maps: steps of the matrix that the tensor is; None where it is more."""

    recipe: Recipe
    steps: tuple[AffineMap, ...] | None

    @cached_property
    def runs(self) -> list[slice]:
        """The runs of rows in which it is made."""
        shape = self.recipe.tensor.shape
        rows = shape[0] if shape else 1
        together = None if self.steps is None else blocks.unit(self.steps)
        width = max(1, math.prod(shape[1:]))
        return blocks.parts(rows, max(1, BLOCK // width), together)

    def read(self, rows: slice) -> np.ndarray:
        """The base's rows."""
        return read_rows(self.recipe.tensor, rows)

    def made(self, base: np.ndarray, rows: slice) -> Made:
        """The rows with the mix in them: computed in float32 at the least, rounded once.

        Raises:
            UnwritableError: if numbers leave the range of the tensor's dtype, or are NaN or
                infinite where the base's are finite.
        """
        leaf, dtype = jnp.asarray(base), self.recipe.dtype
        wide = plan.arithmetic(dtype)
        if self.steps is None:
            exact = self._of_many(leaf.astype(wide))
        elif not self.steps:
            exact = leaf.astype(wide)
        else:
            form = Form(self.recipe.shares[0].form.part)
            exact = plan.run(leaf, blocks.cut(self.steps, rows), form, wide)
        if not rounding.is_rounded(dtype):
            made = np.asarray(exact)
            if not np.isfinite(made).all():
                self._check_finite(made, base)
            return Made(made, None)
        out, loss = rounding.rounded(exact, leaf, dtype)
        if not np.isfinite(loss.squares).all():  # which a single number suffices for
            self._check_finite(np.asarray(exact), base)
        if loss.overflowed:
            raise UnwritableError(
                f"{self.recipe.tensor.name}: {loss.overflowed:,} numbers of the merged tensor lie "
                f"beyond what {dtype} holds (the largest is {loss.largest:.6g}). Convert the base "
                "to bfloat16 or float32 first, or lower the strengths."
            )
        return Made(np.asarray(out), loss)

    def _check_finite(self, made: np.ndarray, base: np.ndarray) -> None:
        """Refuses numbers that the mix made NaN or infinite; those of the base's stay.

        Where a map mixes rows or columns, a number of the base's that is not finite reaches others.
        So there nothing is said of a tensor that has some.
        """
        lost = ~np.isfinite(made)
        spoiled = ~np.isfinite(base.astype(made.dtype))
        if spoiled.any():
            is_additive = self.steps is not None and all(
                isinstance(side, Identity)
                for step in self.steps
                for side in (step.left, step.right)
            )
            lost &= ~spoiled if is_additive else False
        if count := int(lost.sum()):
            raise UnwritableError(
                f"{self.recipe.tensor.name}: the mix makes {count:,} numbers NaN or infinite where "
                "the base's are finite. Look at the adapters' factors and strengths."
            )

    def _of_many(self, leaf: Any) -> Any:
        """A tensor in which several sites lie, or one behind an index: as a whole."""
        for share in self.recipe.shares:
            base = share.base and _array(share.base)
            leaf = plan.apply(leaf, share.word, share.form, base=base, base_form=share.base_form)
        return leaf


def _array(tensor: Stored) -> Any:
    """A whole tensor for JAX."""
    return jnp.asarray(read_rows(tensor, slice(0, tensor.shape[0] if tensor.shape else 1)))
