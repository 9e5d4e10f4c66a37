"""A leaf that keeps its base and the updates of its sites separate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.affine import AffineMap, Base, identity, shift
from jaxmix.apply import plan
from jaxmix.apply.plan import arithmetic, cast
from jaxmix.families.base import Chain, Update
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
from jaxmix.unmerged.misuse import NoArray
from jaxmix.unmerged.norms import HeldNorms, hold, use
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
        turned: For each site, whether its updates were transposed to fit.
        adapters: The name, source and metadata of each adapter of the mix.
        beside: Adapter and site of each update without a leaf.
    """

    sites: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    turned: tuple[bool, ...]
    adapters: tuple[tuple[str, str, Mapping[str, Any]], ...] = field(compare=False)
    beside: tuple[tuple[int, str], ...] = ()


@register_dataclass
@dataclass(frozen=True, eq=False)
class Factored(NoArray):
    """A leaf of params that keeps its base and the updates of its sites separate.

    Args:
        base: The leaf itself, an array or a quantized array.
        words: For each of its sites, strengths and updates in order of application.
        reads: The leaf of the weight that a bias's map reads, otherwise None.
        beside: Strengths and updates without a leaf in the tree, kept in one of its leaves.
        made: Its map, if it was computed by ``ready=True``; otherwise each call computes it.
        norms: For each site, the norms of each update that `attach` computed; empty if it did not.
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
    words: tuple[Chain, ...]
    reads: Any
    beside: Chain
    made: AffineMap | None
    forms: tuple[Form, ...] = field(metadata={"static": True})
    reads_form: Form | None = field(metadata={"static": True})
    tags: Tags = field(metadata={"static": True})
    norms: tuple[tuple[HeldNorms | None, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf."""
        return tuple(self.base.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of the leaf."""
        return self.base.dtype

    def __repr__(self) -> str:
        sizes = dict.fromkeys(f"{u.family} {u.size()}" for word in self.words for _, u in word)
        return f"Factored {self.shape} {self.dtype}: {', '.join(sizes)}"

    def dense(self) -> Array:
        """Returns the leaf with all updates merged, like `jaxmix.compose`."""
        leaf = self._array()
        reads = None if self.reads is None else jnp.asarray(dequantized(self.reads))
        for word, form in zip(self.words, self.forms, strict=True):
            leaf = plan.apply(leaf, word, form, base=reads, base_form=self.reads_form)
        return leaf

    def apart(self, how: How = "auto", name: str = "", *, whole: bool = False) -> Weight | NotApart:
        """Returns its base and map, which represent it in a program, or why it has none.

        Args:
            how: How products are computed.
            name: The leaf's name, for messages.
            whole: Whether a leaf of experts stays one matrix of rows.
        """
        vector = NotApart("a vector, as cheap to make as to use", is_vector=True)
        if self.forms[0].part == "bias" or len(self.shape) == 1:
            return vector
        found = [axes_of(form, len(self.shape)) for form in self.forms]
        axes = [one for one in found if one is not None]
        if len(axes) < len(found):
            return NotApart("its layout splits an axis of the leaf, or picks of two")
        rows, cols, stack = axes[0]
        if not rows or not cols:  # one vector per layer
            return vector
        if self.forms[0].index is None:
            made = self._map(0) if self.made is None else self.made
            weight = Weight(self.base, made, rows, cols, None, how, name)
            return weight if whole else _experts(weight)
        if any(one != axes[0] for one in axes):
            return NotApart("its sites do not lie alike in the leaf")
        made = self.made
        if made is None:
            every = range(len(self.forms))
            made = self._joined(every, axes[0]) if stack is None else self._stack(axes[0])
        if isinstance(made, NotApart):
            return made
        return Weight(self.base, made, rows, cols, stack, how, name)

    def _joined(self, which: Sequence[int], axes: Sides) -> AffineMap | NotApart:
        """The map of a matrix of which some sites are ranges of rows or columns."""
        n = len(self.shape)
        rows, cols, stack = axes
        picked = [Place("", None, self.forms[i].index).ranges(self.shape) for i in which]
        cut = {k - n for ranges in picked for k, r in enumerate(ranges) if len(r) < self.shape[k]}
        cut -= {stack}
        if not cut and stack is not None:
            return self._map(which[0])
        if not cut <= {rows[0]} and not cut <= {cols[0]}:
            return NotApart("its sites are no runs of the leaf's rows or columns")
        axis = rows[0] if cut <= {rows[0]} else cols[0]
        across = cut <= {rows[0]}
        sizes = [prod(self.shape[k] for k in axes) for axes in (rows, cols)]
        each = sizes[0 if across else 1] // self.shape[axis]
        runs = [ranges[axis] for ranges in picked]
        if any(run.step != 1 for run in runs):
            return NotApart("its sites are no runs of the leaf's rows or columns")
        parts = [range(each * run.start, each * run.stop) for run in runs]
        maps = [self._map(i) for i in which]
        shape = (sizes[0], sizes[1])
        if across:
            made = joined(maps, parts, shape)
        else:
            made = joined([one.T for one in maps], parts, (sizes[1], sizes[0]))
            made = None if made is None else made.T
        return made or NotApart(
            "its sites are parts of the leaf, and one of them turns what they share"
        )

    def _stack(self, axes: Sides) -> AffineMap | NotApart:
        """The maps of its sites as layers of a stack."""
        rows, cols, axis = axes
        assert axis is not None
        layers: dict[int, list[int]] = {}
        for i, form in enumerate(self.forms):
            layers.setdefault(layer_of(form, axis, self.shape), []).append(i)
        made: dict[int, AffineMap] = {}
        for layer, which in layers.items():
            found = self._joined(which, axes)
            if isinstance(found, NotApart):
                return found
            made[layer] = found
        shape = prod(self.shape[k] for k in rows), prod(self.shape[k] for k in cols)
        return stacked([made.get(layer, identity(shape)) for layer in range(self.shape[axis])])

    def _map(self, which: int) -> AffineMap:
        """The map of one of its sites."""
        form, dtype = self.forms[which], arithmetic(self.dtype)
        word = cast(self.words[which], dtype)
        held = self.norms[which] if self.norms else (None,) * len(word)
        pairs = list(zip(word, held, strict=True))
        # "high" has 16 bits, twice those of bfloat16.
        precision = "highest" if jnp.dtype(self.dtype).itemsize >= 4 else "high"
        with jax.default_matmul_precision(precision):
            base = Base(None, form.shape(self.shape), is_transposed=form.transposed)
            if any(update.reads_base and norms is None for (_, update), norms in pairs):
                base = self._base(form, self._array())
            made = identity(base.shape)
            for (strength, update), norms in pairs:
                own = base
                if norms is not None:
                    compute = partial(self._norms, form)
                    own = replace(base, norms=use(norms, update, self._array(), compute))
                made = update.weight_map(own, strength).after(made)
                base = update.rebased(base, strength)
            return in_leaf(made, form, self.shape)

    def with_norms(self) -> "Factored":
        """Returns the leaf with the norms of its updates, computed from its arrays.

        Norms of updates after one that changes the base itself depend on that one's strength, and
        those of a quantized leaf need all of its numbers as floats: they are left out.
        """
        if self.forms[0].part == "bias" or len(self.shape) == 1 or is_quantized(self.base):
            return self
        found = tuple(map(self._chain_norms, self.words, self.forms))
        return replace(self, norms=found if any(map(any, found)) else ())

    def _chain_norms(self, word: Chain, form: Form) -> tuple[HeldNorms | None, ...]:
        """The norms of the updates of one site; None for those without."""
        found: list[HeldNorms | None] = []
        is_base = True
        with jax.default_matmul_precision("highest"):
            for _, update in cast(word, arithmetic(self.dtype)):
                is_base = is_base and not update.is_base_side
                can_hold = is_base and update.has_norms
                compute = partial(self._norms, form)
                found.append(hold(update, self._array(), compute) if can_hold else None)
        return tuple(found)

    def _norms(self, form: Form, update: Update, array: Array) -> Array:
        """The norms of an update and the leaf's array."""
        return update.base_norms(self._base(form, array))

    def _base(self, form: Form, array: Array) -> Base:
        """The base that updates of a site read."""
        matrix = form.matrix(array).astype(arithmetic(self.dtype))
        stored = self.dtype if form.is_plain and form.scale == 1 else None
        shape = form.shape(self.shape)
        return Base(matrix, shape, stored=stored, is_transposed=form.transposed)

    def _array(self) -> Array:
        return jnp.asarray(dequantized(self.base))


def stacked(every: Sequence[AffineMap]) -> AffineMap:
    """Stacks maps, one per layer, along a new first axis; see `operators.stacking`.

    Args:
        every: The maps, at least one, all of one shape.

    Returns:
        A stack; under `jax.vmap` each of its entries is one layer's map.
    """
    left = stack_factors([one.left for one in every])
    right = stack_factors([one.right for one in every])
    return AffineMap(left, right, stack_terms([one.shift for one in every]))


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
    if any((one.b.shape[1], one.a.shape[2]) != sizes for one in low):
        return weight
    made = jax.vmap(lambda *terms: shift(reduce(add, terms)))(*low)
    into = weight.into
    return replace(weight, map=made, out=into[:1], into=into[1:], stack=weight.out[0])
