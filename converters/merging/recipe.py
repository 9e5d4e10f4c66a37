"""Computes one tensor of the output from the base's bytes and the maps of its sites."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix.affine import AffineMap, fold
from jaxmix.apply import plan
from jaxmix.apply.joined import Joint, settle
from jaxmix.converters.checkpoints.huggingface import FLOATS, Stored
from jaxmix.converters.merging import blocks, rounding
from jaxmix.converters.merging.tensor_io import read_rows
from jaxmix.errors import CheckpointError
from jaxmix.families.base import Chain
from jaxmix.operators import Identity
from jaxmix.placement.form import Form
from jaxmix.row_cuts import cut_rows, row_unit

__all__ = ["ComputedRows", "FusedWeight", "Prepared", "Recipe", "Share", "UnwritableError"]

# The elements in a run of rows: 4 MB in float32, the dtype of the arithmetic, to fit into caches.
BLOCK = 1 << 20


class UnwritableError(CheckpointError):
    """A merge would produce numbers that are not finite, or out of the tensor dtype's range."""


@dataclass(frozen=True, eq=False)
class FusedWeight:
    """A fused weight whose parts are read together, for one of them.

    Args:
        joint: Its parts.
        site: The part's site among them.
        tensors: The tensors of all parts, by name.
    """

    joint: Joint
    site: str
    tensors: Mapping[str, Stored]


@dataclass(frozen=True, eq=False)
class Share:
    """The updates of one site to a tensor.

    Args:
        site: The site's name.
        chain: Strengths and updates in order of application.
        form: How the tensor holds the site's weight, or its bias.
        base: The weight that the map of a bias reads; None if it reads none.
        base_form: How ``base`` holds that weight.
        fused: The fused weight to which the updates apply, if it has to be read as a whole.
    """

    site: str
    chain: Chain
    form: Form
    base: Stored | None = None
    base_form: Form | None = None
    fused: FusedWeight | None = None

    def settled(self, dtype: Any = None) -> "Share":
        """Returns the same share; of a fused weight, with its part of the result as a new leaf.

        Args:
            dtype: The dtype of the arithmetic; None for float32 or wider, as the tensors are.
        """
        if self.fused is None:
            return self
        tensors = self.fused.tensors
        chains = settle(self.fused.joint, self.form.part, lambda name: _array(tensors[name]), dtype)
        return replace(self, chain=chains[self.fused.site], fused=None)


@dataclass(frozen=True, eq=False)
class Recipe:
    """A tensor that is computed, and the updates of each of its sites.

    Args:
        tensor: The base's tensor.
        shares: The updates by site, usually of one site; empty if the tensor is only dequantized
            or resized.
    """

    tensor: Stored
    shares: tuple[Share, ...]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the result."""
        return np.dtype(FLOATS[self.tensor.dtype])

    @property
    def is_plain(self) -> bool:
        """Whether it is the matrix of one site, so that it can be computed in runs of rows."""
        # Updates see a bias as a column, whose rows are the tensor's only if it is a vector.
        is_column = math.prod(self.tensor.shape[1:]) == 1
        return len(self.shares) < 2 and all(
            share.form.is_plain and (share.form.part != "bias" or is_column)
            for share in self.shares
        )

    def settled(self, dtype: Any = None) -> "Recipe":
        """Returns the recipe with the results of fused weights, which are computed here."""
        return replace(self, shares=tuple(share.settled(dtype) for share in self.shares))

    def prepare(self) -> "Prepared":
        """Builds the affine maps. Updates that read the base read the whole tensor here.

        For a part of a fused weight whose updates can't be cut, all parts are read.
        """
        return self.settled()._prepare()

    def _prepare(self) -> "Prepared":
        if not self.shares or not self.is_plain:
            return Prepared(self, None if self.shares else ())
        (share,) = self.shares
        leaf: Any = jax.ShapeDtypeStruct(self.tensor.shape, self.dtype)
        base = None
        if any(update.reads_base for _, update in share.chain):
            leaf, base = _array(self.tensor), share.base and _array(share.base)
        maps = plan.compiled_maps(leaf, base, share.chain, share.form, share.base_form)
        return Prepared(self, tuple(blocks.with_numpy_factors(step) for step in fold(list(maps))))


@dataclass(frozen=True, eq=False)
class ComputedRows:
    """A run of rows, ready to be written.

    Args:
        array: The rows, in the tensor's dtype.
        loss: The rounding error; None where nothing is rounded.
    """

    array: np.ndarray
    loss: rounding.Loss | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A recipe with its affine maps.

    Args:
        recipe: The recipe.
        steps: The maps in order of application; None if the tensor is not the matrix of one site.
    """

    recipe: Recipe
    steps: tuple[AffineMap, ...] | None

    @cached_property
    def runs(self) -> list[slice]:
        """The runs of rows in which the tensor is computed."""
        shape = self.recipe.tensor.shape
        rows = shape[0] if shape else 1
        unit = None if self.steps is None else row_unit(self.steps)
        width = max(1, math.prod(shape[1:]))
        return blocks.row_runs(rows, max(1, BLOCK // width), unit)

    def read(self, rows: slice) -> np.ndarray:
        """Reads the base's rows."""
        return read_rows(self.recipe.tensor, rows)

    def compute(self, base: np.ndarray, rows: slice) -> ComputedRows:
        """Computes merged rows in float32 or wider, and rounds them once.

        Raises:
            UnwritableError: If numbers exceed the range of the tensor's dtype, or are NaN or
                infinite where the base's are finite.
        """
        # Unlike jnp.asarray, device_put does not copy on a CPU.
        leaf, dtype = jax.device_put(base), self.recipe.dtype
        wide = plan.arithmetic(dtype)
        if self.steps is None:
            exact = self._apply_whole(leaf.astype(wide))
        elif not self.steps:
            exact = leaf.astype(wide)
        else:
            form = Form(self.recipe.shares[0].form.part)
            exact = plan.run(leaf, cut_rows(self.steps, rows), form, wide)
        if not rounding.is_rounded(dtype):
            result = np.asarray(exact)
            if not np.isfinite(result).all():
                self._check_finite(result, base)
            return ComputedRows(result, None)
        out, loss = rounding.round_to_dtype(exact, leaf, dtype)
        if not np.isfinite(loss.squares).all():  # true for any number that is not finite
            self._check_finite(np.asarray(exact), base)
        if loss.overflowed:
            raise UnwritableError(
                f"{self.recipe.tensor.name}: {loss.overflowed:,} numbers of the merged tensor "
                f"exceed the range of {dtype} (the largest is {loss.largest:.6g}). Convert the "
                "base to bfloat16 or float32 first, or lower the strengths."
            )
        return ComputedRows(np.asarray(out), loss)

    def _check_finite(self, result: np.ndarray, base: np.ndarray) -> None:
        """Refuses numbers that the mix made NaN or infinite, and accepts those of the base.

        Where a map mixes rows or columns, a number of the base that is not finite spreads to
        others, so tensors with such numbers are not checked there.
        """
        lost = ~np.isfinite(result)
        not_finite = ~np.isfinite(base.astype(result.dtype))
        if not_finite.any():
            is_additive = self.steps is not None and all(
                isinstance(side, Identity)
                for step in self.steps
                for side in (step.left, step.right)
            )
            lost &= ~not_finite if is_additive else False
        if count := int(lost.sum()):
            numbers = "1 number" if count == 1 else f"{count:,} numbers"
            raise UnwritableError(
                f"{self.recipe.tensor.name}: the mix makes {numbers} NaN or infinite where "
                "the base's are finite. Check the adapters' factors and strengths."
            )

    def _apply_whole(self, leaf: Any) -> Any:
        """Applies the updates to a whole tensor that holds several sites, or an indexed site."""
        for share in self.recipe.shares:
            base = share.base and _array(share.base)
            leaf = plan.apply(leaf, share.chain, share.form, base=base, base_form=share.base_form)
        return leaf


def _array(tensor: Stored) -> Any:
    """Reads a whole tensor as a JAX array."""
    return jnp.asarray(read_rows(tensor, slice(0, tensor.shape[0] if tensor.shape else 1)))
