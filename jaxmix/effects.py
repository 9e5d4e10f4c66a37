"""Effects: what adapters change at each site of a tree, ``Δ = W' − W`` and ``δ = b' − b``.

If the maps give an effect as a low rank, it stays one; any other effect becomes dense, one site at
a time. W is the matrix (out, in) that updates act on, regardless of how its leaf stores it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxmix.adapter import Adapter, Mixable, chains_by_site
from jaxmix.affine import AffineMap, Base, fold
from jaxmix.apply.plan import arithmetic, cast
from jaxmix.errors import AdapterError, remedy
from jaxmix.families import LoRA, Together, Update
from jaxmix.families.base import Chain, joint_flag, maps
from jaxmix.operators import Dense, Operator, Zero, add
from jaxmix.placement import Resolved, Site, resolve
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import OnTree, on_tree
from jaxmix.placement.orientation import may_be_conv1d
from jaxmix.placement.quantized import dequantized
from jaxmix.placement.tree import Tree
from jaxmix.singular import low_rank_of

__all__ = ["ROWS", "Effect", "Spot", "common_dtype", "effects", "effects_of_loras", "is_plain"]


# Rotating a weight costs some of its last digits. Rotations that should cancel left singular values
# of Δ of up to 1.6 epsilons times W's norm.
_ROUNDINGS = 4


# The name of a site that consists of some rows of a leaf.
ROWS = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class Spot:
    """A site with effects, and how PyTorch stores its weight.

    Args:
        name: The site's PyTorch name.
        kernel: A convolution's spatial shape, otherwise ().
        is_vector: Whether the weight has one axis, as a norm's has.
        embedding: Whether the site is an embedding.
        transposed: Whether PyTorch stores the weight as (in, out); None if unknown.
        weight: The base's weight (n,) if it is a vector, otherwise None.
        bias: The base's bias (out,) if an effect changes it, otherwise None.
    """

    name: str
    kernel: tuple[int, ...] = ()
    is_vector: bool = False
    embedding: bool = False
    transposed: bool | None = False
    weight: Float[Array, " n"] | None = None
    bias: Float[Array, " out"] | None = None

    def tensor(self, matrix: Float[Array, "out in"]) -> Float[Array, "..."]:
        """Returns a matrix (out, in) with PyTorch's axes.

        Args:
            matrix: The matrix.

        Raises:
            AdapterError: If these are unknown and the matrix is square.
        """
        if self.is_vector:
            return matrix[:, 0]
        if self.transposed is None and matrix.shape[0] == matrix.shape[1]:
            raise AdapterError(
                f"{self.name}: the file that the adapter was read from does not record whether "
                f"PyTorch stores this weight {matrix.shape} as (out, in) or as (in, out), on which "
                f"a dense update depends. Pass the base: {remedy('params=…', '--base BASE')}."
            )
        # For other shapes, a wrong guess fits no leaf.
        is_guess = self.transposed is None and may_be_conv1d(f"{self.name}.weight")
        if self.transposed or is_guess:
            return matrix.T
        return matrix.reshape(matrix.shape[0], -1, *self.kernel)


@dataclass(frozen=True)
class Effect:
    """The effect of one adapter or mix at one site.

    Args:
        weight: Δ (out, in); None if the weight is unchanged.
        bias: δ (out,); None if the bias is unchanged.
        noise: The largest singular value of Δ that rounding alone may cause; 0 if Δ was not
            computed as a difference of weights.
    """

    weight: Operator | None
    bias: Float[Array, " out"] | None = None
    noise: Float[Array, ""] | float = 0.0


def effects(
    groups: Sequence[Mixable], params: Any, layout: Layout | str | None = None
) -> Iterator[tuple[Spot, tuple[Effect, ...]]]:
    """Computes the effects of adapters, each on the base alone, site by site.

    Args:
        groups: Adapters and mixes.
        params: The base, any pytree of weights.
        layout: Where its sites are; None to infer it from the leaves.

    Yields:
        Each site that one of them changes, with an effect for each of them; adapters that do not
        touch the site have Δ = 0.

    Raises:
        LayoutError: As for `jaxmix.compose`.
        ShapeError: As for `jaxmix.compose`.
    """
    counts = [len(group.parts) for group in groups]

    def placed(tree: OnTree[Adapter]) -> tuple[list[dict[str, Chain]], Resolved, Mapping[str, str]]:
        ends = accumulate(counts)
        chains = [
            chains_by_site(tree.parts[end - n : end]) for n, end in zip(counts, ends, strict=True)
        ]
        joint: dict[str, Chain] = {}
        for by_site in chains:
            for site, chain in by_site.items():
                joint[site] = (*joint.get(site, ()), *chain)
        return chains, resolve(params, joint, tree.layout), tree.original

    parts = [part for group in groups for part in group.parts]
    chains, resolved, original = on_tree(placed, parts, params, layout, None)
    names = [site.name for site in resolved.sites]
    split = {rows[1] for n in names if n not in original and (rows := ROWS.fullmatch(n))}
    for site in resolved.sites:
        spot, site_effects = _at(
            site, [len(by_site.get(site.name, ())) for by_site in chains], resolved.tree
        )
        # A module with another name in the tree keeps the adapters' name, unless other adapters
        # change more of its leaf.
        rows = ROWS.fullmatch(spot.name)
        own_name = original.get(spot.name, spot.name)
        yield replace(spot, name=spot.name if rows and rows[1] in split else own_name), site_effects


@jax.default_matmul_precision("highest")
def _at(site: Site, counts: Sequence[int], tree: Tree) -> tuple[Spot, tuple[Effect, ...]]:
    """A site, and the effects of consecutive parts of its chain with these numbers of updates.

    The updates were fitted as one chain, so all of them use the same orientation of the weight.
    """
    weight = _on_one_device(dequantized(tree.leaf(site.weight))) if site.weight else None
    bias = _on_one_device(dequantized(tree.leaf(site.bias))) if site.bias else None
    site_effects: list[Effect] = []
    remaining = site.chain
    for count in counts:
        site_effects.append(_effect(site, remaining[:count], weight, bias))
        remaining = remaining[count:]
    return _spot(site, weight, bias), tuple(site_effects)


def effects_of_loras(groups: Sequence[Mixable]) -> Iterator[tuple[Spot, tuple[Effect, ...]]]:
    """Computes the effects of adapters that consist of plain LoRAs (`is_plain`), without a base."""
    chains = [chains_by_site(group.parts) for group in groups]
    for site in dict.fromkeys(site for by_site in chains for site in by_site):
        updates: list[Any] = [update for by_site in chains for _, update in by_site.get(site, ())]
        dtype = common_dtype(updates)
        first = updates[0]
        shape = (first.b.shape[0], first.a.shape[1])
        is_transposed = joint_flag(update.transposed for update in updates)
        spot = Spot(site, first.kernel, embedding=first.embedding, transposed=is_transposed)
        yield (
            spot,
            tuple(_plain_effect(cast(by_site.get(site, ()), dtype), shape) for by_site in chains),
        )


def _plain_effect(chain: Chain, shape: tuple[int, int]) -> Effect:
    """The effect of LoRAs."""
    no_base = Base(None, shape)
    delta = reduce(add, (map_.shift for map_ in maps(chain, no_base)), Zero(*shape))
    if not any(update.has_bias for _, update in chain):
        return Effect(delta)
    shifts = (map_.shift for map_ in maps(chain, no_base, "bias"))
    return Effect(delta, reduce(add, shifts, Zero(shape[0], 1)).dense()[:, 0])


def common_dtype(updates: Sequence[LoRA]) -> Any:
    """Returns the dtype of arithmetic with LoRAs: float32 or wider."""
    dtypes = (update.a.dtype for update in updates)
    return jax.dtypes.canonicalize_dtype(reduce(np.promote_types, dtypes, np.dtype(np.float32)))


def is_plain(update: Update) -> bool:
    """Returns whether an update is a LoRA that does not read the base."""
    return isinstance(update, LoRA) and update.magnitude is None


def _spot(site: Site, weight: Any, bias: Any) -> Spot:
    """A site's properties besides its effects."""
    place = site.weight if site.changes_weight else None
    shape = place.shape(weight.shape) if place else ()
    is_vector = len(shape) == 1
    is_named = place is not None and place.leaf.endswith(".embedding")
    return Spot(
        site.name,
        tuple(shape[2:]),
        is_vector,
        embedding=is_named or any(_is_embedding(update) for _, update in site.chain),
        transposed=site.transposed,
        weight=_matrix(weight, form)[:, 0] if is_vector and (form := site.weight_form) else None,
        bias=_matrix(bias, site.bias_form)[:, 0] if site.bias_form else None,
    )


def _is_embedding(update: Update) -> bool:
    """Whether an update's site is an embedding."""
    if isinstance(update, Together):
        return any(_is_embedding(part) for part in update.parts)
    return bool(getattr(update, "embedding", False))


def _effect(site: Site, chain: Chain, weight: Any, bias: Any) -> Effect:
    """The effect of a chain at a site."""
    reads = any(update.reads_base for _, update in chain)
    delta, moved, noise = None, None, 0.0
    if site.weight_form and site.changes_weight:
        form, dtype = site.weight_form, arithmetic(weight.dtype)
        shape = form.shape(weight.shape)
        base = Base(_matrix(weight, form) if reads else None, shape)
        steps = fold(maps(cast(chain, dtype), base))
        delta = _shift_of(steps, shape)
        if delta is None:
            delta, noise = _difference(steps, lambda: _matrix(weight, form))
    if site.bias_form and any(update.has_bias or update.maps_bias for _, update in chain):
        column, matrix = _matrix(bias, site.bias_form), None
        if reads and site.weight_form:
            matrix = _matrix(weight, site.weight_form).astype(column.dtype)
        rows, cols = column.shape if matrix is None else matrix.shape
        steps = fold(maps(cast(chain, column.dtype), Base(matrix, (rows, cols), column), "bias"))
        same = jnp.zeros_like(column)
        moved = (_difference(steps, lambda: column)[0].dense() if steps else same)[:, 0]
    return Effect(delta, moved, noise)


def _shift_of(steps: Sequence[AffineMap], shape: tuple[int, int]) -> Operator | None:
    """The Δ of steps that only add a low rank; otherwise None."""
    if not steps:
        return Zero(*shape)
    if len(steps) > 1 or not steps[0].is_shift:
        return None
    return low_rank_of(steps[0].shift)


def _difference(
    steps: Sequence[AffineMap], start: Callable[[], Array]
) -> tuple[Dense, Float[Array, ""] | float]:
    """``W' − W`` as a dense matrix, and the noise of rounding in it.

    Sums are computed without W, so that small terms keep their digits; a difference of weights is
    computed only for steps with an L or R.
    """
    moved: Array | None = None
    noise: Any = 0.0
    for step in steps:
        if not step.is_shift:
            w = start()
            now = w if moved is None else w + moved
            moved = replace(step, shift=Zero(*step.shape))(now) - w
            noise = _ROUNDINGS * jnp.finfo(w.dtype).eps * jnp.linalg.norm(w)
        if moved is None:
            moved = step.shift.dense()
        else:
            moved = step.shift.added_to(moved)
    assert moved is not None
    return Dense(moved), noise


def _matrix(leaf: Any, form: Form) -> Float[Array, "out in"]:
    """A weight as (out, in), or a bias as (out, 1), in the dtype of the arithmetic."""
    return form.matrix(leaf).astype(arithmetic(leaf.dtype))


def _on_one_device(leaf: Any) -> jax.Array:
    """A leaf as an array on one device, because decompositions need all of it."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or len(leaf.devices()) == 1:
        return jnp.asarray(leaf)
    return jnp.asarray(np.asarray(leaf))
