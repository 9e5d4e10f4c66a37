"""A leaf that keeps its base and the updates of its sites separate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.affine import AffineMap, identity, shift
from jaxmix.apply import plan
from jaxmix.apply.plan import arithmetic, cast
from jaxmix.families.base import Chain
from jaxmix.operators import (
    LowRank,
    StackedLowRank,
    add,
    stack_factors,
    stack_terms,
    terms,
)
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Place
from jaxmix.placement.quantized import dequantized, is_quantized
from jaxmix.pytrees import register_dataclass
from jaxmix.unmerged.axes import Sides, axes_of, in_leaf, layer_of
from jaxmix.unmerged.held import HeldValue, Inputs, hold, site_base, use
from jaxmix.unmerged.misuse import NoArray
from jaxmix.unmerged.parts import joined
from jaxmix.unmerged.weight import How, Weight

__all__ = ["Factored", "NotApart", "Tags", "stacked"]


@register_dataclass
@dataclass(frozen=True)
class NotApart:
    """The reason why a leaf has no separate base and map.

    Args:
        why: The reason, for messages.
        is_vector: Whether it is a vector, whose dense form costs no more.
    """

    why: str = field(metadata={"static": True})
    is_vector: bool = field(default=False, metadata={"static": True})


@dataclass(frozen=True)
class Tags:
    """The static data of a leaf's chains.

    The adapters' names are ignored in comparisons, so other names use the same program.

    Args:
        sites: The name of each of its sites.
        parts: For each site, the number of the adapter of each of its updates.
        transposed: For each site, whether its updates were transposed to fit.
        adapters: The name, source and metadata of each adapter of the mix.
        unplaced: Adapter and site of each update without a leaf.
    """

    sites: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    transposed: tuple[bool, ...]
    adapters: tuple[tuple[str, str, Mapping[str, Any]], ...] = field(compare=False)
    unplaced: tuple[tuple[int, str], ...] = ()


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factored(NoArray):
    """A leaf of params that keeps its base and the updates of its sites separate.

    Args:
        base: The leaf itself, an array or a quantized array.
        chains: For each of its sites, strengths and updates in order of application.
        reads: The leaf of the weight that a bias's map reads, otherwise None.
        unplaced: Strengths and updates without a leaf in the tree, kept in one of its leaves.
        ready_map: Its map, if it was computed by ``ready=True``; otherwise each call computes it.
        held: For each site, the value of each update that `attach` computed; empty if it did not.
        forms: For each site, how the leaf holds its tensor.
        reads_form: How that weight's leaf holds its tensor.
        tags: The names of the sites and adapters.

    Example:
        >>> from jaxmix import Adapter, attach
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)})
        >>> attach({"proj.weight": jnp.zeros((2, 3))}, lora)["proj.weight"]
        Factored (2, 3) float32: LoRA rank 1

    Source: docs/design.md.
    """

    base: Any
    chains: tuple[Chain, ...]
    reads: Any
    unplaced: Chain
    ready_map: AffineMap | None
    forms: tuple[Form, ...] = field(metadata={"static": True})
    reads_form: Form | None = field(metadata={"static": True})
    tags: Tags = field(metadata={"static": True})
    held: tuple[tuple[HeldValue | None, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the leaf."""
        return self.base.dtype

    def __repr__(self) -> str:
        sizes = dict.fromkeys(f"{u.family} {u.size()}" for chain in self.chains for _, u in chain)
        return f"Factored {self.shape} {self.dtype}: {', '.join(sizes)}"

    def dense(self) -> Array:
        """Returns the leaf with all updates merged, like `jaxmix.compose`."""
        leaf = self._array()
        reads = None if self.reads is None else jnp.asarray(dequantized(self.reads))
        for chain, form in zip(self.chains, self.forms, strict=True):
            leaf = plan.apply(leaf, chain, form, base=reads, base_form=self.reads_form)
        return leaf

    def apart(
        self, how: How = "auto", name: str = "", *, as_matrix: bool = False
    ) -> Weight | NotApart:
        """Returns its base and map, which represent it in a program, or why it has none.

        Args:
            how: How products are computed.
            name: The leaf's name, for messages.
            as_matrix: Whether a leaf of experts stays one matrix of rows.
        """
        vector = NotApart("a vector, as cheap to make dense as to use", is_vector=True)
        if self.forms[0].part == "bias" or len(self.shape) == 1:
            return vector
        axes = [sides for form in self.forms if (sides := axes_of(form, len(self.shape)))]
        if len(axes) < len(self.forms):
            return NotApart("its layout splits an axis of the leaf, or picks of two")
        rows, cols, stack = axes[0]
        if not rows or not cols:  # one vector per layer
            return vector
        if self.forms[0].index is None:
            leaf_map = self._map(0) if self.ready_map is None else self.ready_map
            weight = Weight(self.base, leaf_map, rows, cols, None, how, name)
            return weight if as_matrix else _experts(weight)
        if len(set(axes)) > 1:
            return NotApart("its sites have different axes in the leaf")
        leaf_map = self.ready_map
        if leaf_map is None:
            sites = range(len(self.forms))
            leaf_map = self._joined(sites, axes[0]) if stack is None else self._stack(axes[0])
        if isinstance(leaf_map, NotApart):
            return leaf_map
        return Weight(self.base, leaf_map, rows, cols, stack, how, name)

    def _joined(self, sites: Sequence[int], axes: Sides) -> AffineMap | NotApart:
        """The map of a matrix of which some sites are ranges of rows or columns."""
        n = len(self.shape)
        rows, cols, stack = axes
        picked = [Place("", None, self.forms[i].index).ranges(self.shape) for i in sites]
        cut = {k - n for ranges in picked for k, r in enumerate(ranges) if len(r) < self.shape[k]}
        cut -= {stack}
        if not cut and stack is not None:
            return self._map(sites[0])
        if not cut <= {rows[0]} and not cut <= {cols[0]}:
            return NotApart("its sites are not contiguous rows or columns of the leaf")
        axis = rows[0] if cut <= {rows[0]} else cols[0]
        across = cut <= {rows[0]}
        sizes = [prod(self.shape[k] for k in axes) for axes in (rows, cols)]
        each = sizes[0 if across else 1] // self.shape[axis]
        runs = [ranges[axis] for ranges in picked]
        if any(run.step != 1 for run in runs):
            return NotApart("its sites are not contiguous rows or columns of the leaf")
        parts = [range(each * run.start, each * run.stop) for run in runs]
        maps = [self._map(i) for i in sites]
        shape = (sizes[0], sizes[1])
        if across:
            joined_map = joined(maps, parts, shape)
        else:
            joined_map = joined([site_map.T for site_map in maps], parts, (sizes[1], sizes[0]))
            joined_map = None if joined_map is None else joined_map.T
        return joined_map or NotApart(
            "its sites are parts of the leaf, and one of them rotates an axis that they share"
        )

    def _stack(self, axes: Sides) -> AffineMap | NotApart:
        """The maps of its sites as layers of a stack."""
        rows, cols, axis = axes
        assert axis is not None
        layers: dict[int, list[int]] = {}
        for i, form in enumerate(self.forms):
            layers.setdefault(layer_of(form, axis, self.shape), []).append(i)
        maps: dict[int, AffineMap] = {}
        for layer, sites in layers.items():
            layer_map = self._joined(sites, axes)
            if isinstance(layer_map, NotApart):
                return layer_map
            maps[layer] = layer_map
        shape = prod(self.shape[k] for k in rows), prod(self.shape[k] for k in cols)
        return stacked([maps.get(layer, identity(shape)) for layer in range(self.shape[axis])])

    def _map(self, site: int) -> AffineMap:
        """The map of one of its sites."""
        form, dtype = self.forms[site], arithmetic(self.dtype)
        chain = cast(self.chains[site], dtype)
        held = self.held[site] if self.held else (None,) * len(chain)
        # "high" has 16 bits, twice those of bfloat16.
        precision = "highest" if jnp.dtype(self.dtype).itemsize >= 4 else "high"
        with jax.default_matmul_precision(precision):
            pairs = list(zip(chain, held, strict=True))
            reads = any(update.reads_base and value is None for (_, update), value in pairs)
            base = site_base(form, self._array() if reads else None, self._outline)
            site_map = identity(base.shape)
            for (strength, update), value in pairs:
                own_base = base
                if value is not None and (inputs := Inputs.of(update, strength, self.base)):
                    own_base = replace(base, precomputed=use(value, inputs, form, self._outline))
                site_map = update.weight_map(own_base, strength).after(site_map)
                base = update.rebased(base, strength)
            return in_leaf(site_map, form, self.shape)

    def with_held(self, can_hold: Callable[[Inputs], bool] = lambda inputs: True) -> "Factored":
        """Returns the leaf with the values of its updates, computed from its arrays.

        Values that read the base are left out if the leaf is quantized, since they need all of its
        numbers as floats, and after an update that changes the base itself, since they depend on
        that update's strength.

        Args:
            can_hold: Whether a value with these inputs is computed.
        """
        if self.forms[0].part == "bias" or len(self.shape) == 1:
            return self
        sites = zip(self.chains, self.forms, strict=True)
        held = tuple(self._held(chain, form, can_hold) for chain, form in sites)
        return replace(self, held=held if any(map(any, held)) else ())

    def _held(
        self, chain: Chain, form: Form, can_hold: Callable[[Inputs], bool]
    ) -> tuple[HeldValue | None, ...]:
        """The values of the updates of one site; None for those without."""
        held: list[HeldValue | None] = []
        is_base = not is_quantized(self.base)
        for strength, update in chain:
            is_base = is_base and not update.is_base_side
            inputs = Inputs.of(update, strength, self.base)
            if inputs is None or not (is_base or inputs.leaf is None) or not can_hold(inputs):
                held.append(None)
            else:
                held.append(hold(inputs, form, self._outline))
        return tuple(held)

    @property
    def _outline(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def _array(self) -> Array:
        return jnp.asarray(dequantized(self.base))


def stacked(maps: Sequence[AffineMap]) -> AffineMap:
    """Stacks maps, one per layer, along a new first axis; see `operators.stacking`.

    Args:
        maps: The maps, at least one, all of one shape.

    Returns:
        A stack; under `jax.vmap` each of its entries is one layer's map.
    """
    left = stack_factors([layer.left for layer in maps])
    right = stack_factors([layer.right for layer in maps])
    return AffineMap(left, right, stack_terms([layer.shift for layer in maps]))


def _experts(weight: Weight) -> Weight:
    """A leaf whose rows are the experts' matrices, each with a low rank, as a stack."""
    parts = terms(weight.map.shift)
    low = [
        LowRank(t.b, t.a) for t in parts if isinstance(t, StackedLowRank) and not t.is_transposed
    ]
    is_all = len(low) == len(parts) and weight.map.is_shift
    rows, cols, _ = weight.axes
    if not is_all or len(rows) != 1 or len(cols) != 2:
        return weight
    sizes = tuple(weight.shape[k] for k in cols)
    if any((term.b.shape[1], term.a.shape[2]) != sizes for term in low):
        return weight
    expert_maps = jax.vmap(lambda *terms: shift(reduce(add, terms)))(*low)
    into = weight.into
    return replace(weight, map=expert_maps, out=into[:1], into=into[1:], stack=weight.out[0])
