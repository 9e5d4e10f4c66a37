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
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxmix.affine import Base
from jaxmix.apply.decomposing import decomposed
from jaxmix.apply.plan import cast
from jaxmix.families import Replace, Update
from jaxmix.families.base import Chain, Part
from jaxmix.families.part_of import PartOf, RowRange
from jaxmix.placement import Site
from jaxmix.placement.devices import is_explicit
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
    leaves, biases = list[Array](), list[Array | None]()
    for site in joint.sites:
        assert site.weight and site.weight_form
        leaves.append(leaf_of(site.weight.leaf))
        has_bias = kind == "bias" and site.bias and site.bias_form
        biases.append(leaf_of(site.bias.leaf) if has_bias and site.bias else None)
    found = [arithmetic(leaf.dtype) for leaf in (*leaves, *biases) if leaf is not None]
    wide = np.result_type(*found) if dtype is None else np.dtype(dtype)
    steps, where = _steps(joint, wide)
    forms = tuple((site.weight_form, site.bias_form) for site in joint.sites)
    program = _Program(kind, forms, joint.rows, where, wide)
    if not any(update.is_base_side for _, update in steps):
        steps = tuple(
            decomposed((step,), leaves[0], partial(_matrix, leaves, program, at))[0]
            for step, at in zip(steps, where, strict=True)
        )
    explicit = [jax.typeof(leaf).sharding for leaf in leaves if is_explicit(leaf)]
    sharding = NamedSharding(explicit[0].mesh, PartitionSpec()) if explicit else None
    made = _run(steps, leaves, biases, program=program, sharding=sharding)
    chains: dict[str, Chain] = {}
    for site, part in zip(joint.sites, made, strict=True):
        if kind == "weight":
            chains[site.name] = ((1.0, Replace(weight=part)),)
        elif site.bias and site.bias_form:
            chains[site.name] = ((1.0, Replace(bias=part[:, 0])),)
    return chains


@dataclass(frozen=True)
class _Program:
    """What the compiled function depends on besides shapes.

    Args:
        kind: Whether it computes the weight or the bias.
        forms: How the leaves hold each part's weight and bias.
        rows: The rows of each part.
        where: The rows to which each update applies; None for all.
        dtype: The dtype of the arithmetic.
    """

    kind: Part
    forms: tuple[tuple[Form | None, Form | None], ...]
    rows: tuple[RowRange, ...]
    where: tuple[RowRange | None, ...]
    dtype: np.dtype


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


def _matrix(leaves: Sequence[Array], program: _Program, at: RowRange | None) -> Array:
    """The fused weight, or some of its rows."""
    forms = [form for form, _ in program.forms if form]
    parts = [form.matrix(leaf) for leaf, form in zip(leaves, forms, strict=True)]
    return _cut(_fused(parts, program), at)


def _bias(weight: Array, biases: Sequence[Array | None], program: _Program) -> Array | None:
    """The fused bias (out, 1), with zeros for parts that have none; None if no part has one."""
    if all(bias is None for bias in biases):
        return None
    parts = [
        jnp.zeros((len(range(*rows)), 1), weight.dtype)
        if bias is None or form is None
        else form.matrix(bias)
        for bias, (_, form), rows in zip(biases, program.forms, program.rows, strict=True)
    ]
    return _fused(parts, program)


def _fused(parts: Sequence[Array], program: _Program) -> Float[Array, "out in"]:
    """The matrix that the parts make up, in the dtype of the arithmetic."""
    positions = np.concatenate([np.arange(*rows) for rows in program.rows])
    joined = jnp.concatenate([part.astype(program.dtype) for part in parts])
    is_sorted = np.array_equal(positions, np.arange(len(positions)))
    return joined if is_sorted else joined[np.argsort(positions).astype(np.int32)]


def _cut(matrix: Array, rows: RowRange | None) -> Array:
    """Some rows; None for all."""
    return matrix if rows is None else matrix[slice(*rows)]


def _put(matrix: Array, rows: RowRange | None, new: Array) -> Array:
    """The matrix with some of its rows replaced."""
    return new if rows is None else matrix.at[slice(*rows)].set(new)


@partial(jax.jit, static_argnames=("program", "sharding"))
def _run(
    steps: Chain,
    leaves: Sequence[Array],
    biases: Sequence[Array | None],
    *,
    program: _Program,
    sharding: Any,
) -> list[Array]:
    """The parts of the result. On a mesh with explicit axes, XLA chooses all shardings inside."""
    run: Any = partial(_applied, program=program)
    if sharding is not None:
        run = jax.sharding.auto_axes(run, out_sharding=sharding)
    return run(steps, leaves, biases)


def _applied(
    steps: Chain, leaves: Sequence[Array], biases: Sequence[Array | None], *, program: _Program
) -> list[Array]:
    """Applies updates in order. Each reads the base, as `jaxmix.families.base.maps` does."""
    weight = _matrix(leaves, program, None)
    bias = _bias(weight, biases, program)
    now = weight if program.kind == "weight" else bias
    assert now is not None
    with jax.default_matmul_precision("highest"):
        for (strength, update), at in zip(cast(steps, weight.dtype), program.where, strict=True):
            own = _cut(weight, at)
            rows, columns = own.shape
            base = Base(own, (rows, columns), None if bias is None else _cut(bias, at))
            map_of = update.weight_map if program.kind == "weight" else update.bias_map
            now = _put(now, at, map_of(base, strength)(_cut(now, at)))
            later = update.rebased(base, strength)
            if later is not base:
                assert later.matrix is not None
                weight = _put(weight, at, later.matrix)
                bias = None if later.bias is None or bias is None else _put(bias, at, later.bias)
    return [_cut(now, rows) for rows in program.rows]
