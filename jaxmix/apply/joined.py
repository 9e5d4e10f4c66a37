"""Applies updates that need a whole fused weight, of which a tree has the parts.

The parts are joined, the updates are applied one after the other to the whole or to some of its
rows, and the result is split. Each part's chain is then one that replaces it by its rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxmix.affine import Base
from jaxmix.apply.decomposing import decomposed
from jaxmix.apply.plan import cast
from jaxmix.families import Replace, Update
from jaxmix.families.base import Chain, Part
from jaxmix.families.part_of import PartOf, RowRange
from jaxmix.placement import Site
from jaxmix.placement.form import Form, arithmetic

__all__ = ["Joint", "joints_of", "settle"]


@dataclass(frozen=True, eq=False)
class Joint:
    """The parts of a fused weight, in order.

    Args:
        sites: The site of each part.
        rows: The rows of the fused weight that each part holds.
    """

    sites: tuple[Site, ...]
    rows: tuple[RowRange, ...]


def joints_of(sites: Iterable[Site]) -> dict[str, Joint]:
    """Returns the fused weight of each site whose updates need all of it.

    Args:
        sites: All sites.

    Returns:
        ``{site: fused weight}``.
    """
    by_name = {site.name: site for site in sites}
    found: dict[str, Joint] = {}
    for name, site in by_name.items():
        part = next((update for _, update in site.chain if isinstance(update, PartOf)), None)
        if part is not None and name not in found:
            joint = Joint(tuple(by_name[each] for each in part.names), part.rows)
            found |= dict.fromkeys(part.names, joint)
    return found


def settle(
    joint: Joint, kind: Part, leaf_of: Callable[[str], Array], dtype: Any = None
) -> Mapping[str, Chain]:
    """Applies all updates of a fused weight.

    Args:
        joint: Its parts.
        kind: Whether to return its weight or its bias.
        leaf_of: Returns the leaf of a name.
        dtype: The dtype of the arithmetic; None for that of the leaves, float32 or wider.

    Returns:
        ``{site: chain}``, where each chain replaces the part by its rows of the result; for a bias
        only the sites that have one.
    """
    weights, biases = list[Array](), list[Array]()
    leaf: Any = None
    for site in joint.sites:
        assert site.weight and site.weight_form
        leaf = leaf_of(site.weight.leaf)
        weights.append(_matrix(leaf, site.weight_form, dtype))
        if kind == "weight":
            continue
        if site.bias and site.bias_form:
            biases.append(_matrix(leaf_of(site.bias.leaf), site.bias_form, dtype))
        else:
            biases.append(jnp.zeros((weights[-1].shape[0], 1), weights[-1].dtype))
    wide = dtype or jnp.result_type(*weights, *biases)
    base = _fused([x.astype(wide) for x in weights], joint.rows)
    bias = _fused([x.astype(wide) for x in biases], joint.rows) if biases else None
    steps, where = _steps(joint, wide)
    if not any(update.is_base_side for _, update in steps):
        steps = tuple(
            decomposed((step,), leaf, partial(_cut, base, at))[0]
            for step, at in zip(steps, where, strict=True)
        )
    made = _run(steps, base, bias, where=where, kind=kind)
    chains: dict[str, Chain] = {}
    for site, rows in zip(joint.sites, joint.rows, strict=True):
        if kind == "weight":
            chains[site.name] = ((1.0, Replace(weight=_cut(made, rows))),)
        elif site.bias and site.bias_form:
            chains[site.name] = ((1.0, Replace(bias=_cut(made, rows)[:, 0])),)
    return chains


def _matrix(leaf: Array, form: Form, dtype: Any) -> Array:
    """A leaf as the matrix that updates act on, in the dtype of the arithmetic."""
    return form.matrix(leaf).astype(arithmetic(leaf.dtype) if dtype is None else dtype)


def _steps(joint: Joint, dtype: Any) -> tuple[Chain, tuple[RowRange | None, ...]]:
    """All updates in order with their strengths, and the rows of those that are of a part."""
    found: dict[tuple[int, int], tuple[Any, Update, RowRange | None]] = {}
    for number, site in enumerate(joint.sites):
        for strength, part in site.chain:
            assert isinstance(part, PartOf)
            key = (part.order, -1 if part.is_whole else number)
            is_array = isinstance(strength, jax.Array)
            strength = strength.astype(dtype) if is_array else np.asarray(strength, dtype)
            found[key] = (strength, part.update, None if part.is_whole else joint.rows[number])
    ordered = [found[key] for key in sorted(found)]
    return tuple((s, update) for s, update, _ in ordered), tuple(at for *_, at in ordered)


def _fused(parts: Sequence[Array], rows: Sequence[RowRange]) -> Float[Array, "out in"]:
    """The fused matrix."""
    positions = np.concatenate([np.arange(*each) for each in rows])
    joined = jnp.concatenate(parts)
    is_sorted = np.array_equal(positions, np.arange(len(positions)))
    return joined if is_sorted else joined[np.argsort(positions).astype(np.int32)]


def _cut(matrix: Array, rows: RowRange | None) -> Array:
    """Some rows; None for all."""
    return matrix if rows is None else matrix[slice(*rows)]


def _put(matrix: Array, rows: RowRange | None, new: Array) -> Array:
    """The matrix with some of its rows replaced."""
    return new if rows is None else matrix.at[slice(*rows)].set(new)


@partial(jax.jit, static_argnames=("where", "kind"))
def _run(
    steps: Chain,
    weight: Array,
    bias: Array | None,
    *,
    where: tuple[RowRange | None, ...],
    kind: Part,
) -> Array:
    """Applies updates in order. Each reads the base, as `jaxmix.families.base.maps` does."""
    now = weight if kind == "weight" else bias
    assert now is not None
    with jax.default_matmul_precision("highest"):
        for (strength, update), at in zip(cast(steps, weight.dtype), where, strict=True):
            own = _cut(weight, at)
            base = Base(own, own.shape, None if bias is None else _cut(bias, at))
            map_of = update.weight_map if kind == "weight" else update.bias_map
            now = _put(now, at, map_of(base, strength)(_cut(now, at)))
            later = update.rebased(base, strength)
            if later is not base:
                assert later.matrix is not None
                weight = _put(weight, at, later.matrix)
                bias = None if later.bias is None or bias is None else _put(bias, at, later.bias)
    return now
