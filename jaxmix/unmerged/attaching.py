"""`attach` and `detach`: store adapters next to the leaves of a tree, and remove them again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmix.adapter import Adapter, Mixable, chains_by_site
from jaxmix.affine import AffineMap
from jaxmix.errors import AdapterError
from jaxmix.families import Update
from jaxmix.families.base import Chain
from jaxmix.metadata import Metadata
from jaxmix.mixing import several
from jaxmix.placement import Resolved, Site, resolve
from jaxmix.placement.layout import Layout
from jaxmix.placement.naming import Names, OnTree, on_tree
from jaxmix.placement.params import check_no_path
from jaxmix.placement.tree import Tree
from jaxmix.unmerged.leaf import Factored, Tags
from jaxmix.unmerged.weight import Weight

__all__ = ["attach", "attach_only", "detach", "is_factored", "unnamed"]


def is_factored(x: Any) -> bool:
    """Returns whether a value is a leaf with adapters attached."""
    return isinstance(x, Factored)


def attach(
    params: Any,
    adapters: Mixable | Iterable[Mixable],
    *,
    layout: Layout | str | None = None,
    names: Names = None,
    ready: bool = False,
) -> Any:
    """Attaches adapters to params: leaves keep ``W`` and ``(L, R, Δ)`` separate.

    `jaxmix.factored` runs the result: ``factored(fn)(attach(params, adapters), x)`` equals
    ``fn(compose(params, adapters), x)``, without merged weights. Attaching copies nothing. It
    computes only what each call would compute again: the norms that DoRA divides by, and the
    rotations of OFT, BOFT and Diag-OFT. Other strengths or adapters are another tree of the same
    base; with equal shapes they use the same compiled program.

    Args:
        params: The base, any pytree of weights, as in `jaxmix.compose`; leaves may be qwix's
            quantized arrays, which stay quantized.
        adapters: An adapter, a mix, or several of them in order of application.
        layout: Where the sites are in the tree, as in `jaxmix.compose`.
        names: How the model's tensors are renamed, as in `jaxmix.compose`.
        ready: Compute the operators of each leaf now and store them: calls are then faster for
            adapters with costly maps. New strengths need a new tree, and gradients reach the
            operators instead of the updates.

    Returns:
        A tree of the same structure, with a `Factored` in place of each leaf that adapters change;
        its leaves are the base, the updates' arrays, the strengths, and the norms and rotations.
        These take 4 bytes for each row of a DoRA, and 4·b bytes for each input that blocks of size
        b rotate, in float32. Each call computes them again if arrays that they depend on changed,
        or if they were traced: within `jax.jit`, only those of arrays that are no arguments are
        computed once. So do calls with arrays on several devices.

    Raises:
        LayoutError: As `jaxmix.compose`.
        ShapeError: As `jaxmix.compose`.
        AdapterError: As `jaxmix.compose`; or if adapters are attached to the tree already.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix import factored
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)})
        >>> leaves = attach({"proj.weight": jnp.zeros((2, 3))}, [0.5 * lora])
        >>> factored(lambda p, x: x @ p["proj.weight"].T)(leaves, jnp.ones((1, 3))).tolist()
        [[1.5, 1.5]]

    Source: docs/design.md.
    """
    return _attached(params, adapters, layout, names, _ready if ready else _with_held)


def attach_only(
    params: Any, adapters: Mixable | Iterable[Mixable], layout: Layout | str | None
) -> Any:
    """Attaches adapters like `attach`, without computing anything.

    Args:
        params: The base.
        adapters: An adapter, a mix, or several of them in order of application.
        layout: Where the sites are in the tree.

    Returns:
        The tree, with a `Factored` in place of each leaf that adapters change.
    """
    return _attached(params, adapters, layout, None, lambda leaf: leaf)


def _attached(
    params: Any,
    adapters: Mixable | Iterable[Mixable],
    layout: Layout | str | None,
    names: Names,
    finish: Callable[[Factored], Factored],
) -> Any:
    """The tree, with a finished `Factored` in place of each leaf that adapters change."""
    if any(map(is_factored, jax.tree.leaves(params, is_leaf=is_factored))):
        raise AdapterError(
            "attach: the params have adapters attached already, expected a base. Take them off "
            "with jaxmix.detach and attach all together, in order: attach(params, [first, second])."
        )
    parts = several(adapters, "attach").parts
    if not any(part.updates for part in parts):
        check_no_path(params)
        return params
    parts, by_site, resolved = on_tree(partial(_placed, params), parts, params, layout, names)
    numbers: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for site in part.updates:
            numbers.setdefault(site, []).append(number)
    tree = resolved.tree
    labels = tuple((part.name, part.source, part.metadata) for part in parts)
    leaves = list(tree.leaves)
    sites_by_leaf: dict[int, list[tuple[Site, str]]] = {}
    for site in resolved.sites:
        if site.bias and site.bias_form:
            sites_by_leaf.setdefault(tree.positions[site.bias.leaf], []).append((site, "bias"))
        if site.weight and site.weight_form and site.changes_weight:
            sites_by_leaf.setdefault(tree.positions[site.weight.leaf], []).append((site, "weight"))
    placed = {site.name for sites in sites_by_leaf.values() for site, _ in sites}
    unplaced = [
        (number, site, pair)
        for site, chain in by_site.items()
        if site not in placed
        for number, pair in zip(numbers[site], chain, strict=True)
    ]
    for at, sites in sites_by_leaf.items():
        leaves[at] = _leaf(tree, at, sites, numbers, labels, unplaced)
        unplaced = []
    leaves = [finish(leaf) if is_factored(leaf) else leaf for leaf in leaves]
    return tree.with_leaves(leaves)


def _placed(
    params: Any, tree: OnTree[Adapter]
) -> tuple[Sequence[Adapter], dict[str, Chain], Resolved]:
    """The adapters under the tree's names, their chains, and where their sites are."""
    by_site = {
        site: tuple((_as_array(strength), update) for strength, update in chain)
        for site, chain in chains_by_site(tree.parts).items()
    }
    return tree.parts, by_site, resolve(params, by_site, tree.layout)


def _ready(leaf: Factored) -> Factored:
    """A leaf with its map computed."""
    ready_map = _map_of(unnamed(leaf))
    return leaf if ready_map is None else replace(leaf, ready_map=ready_map)


def _with_held(leaf: Factored) -> Factored:
    """A leaf with the values that do not change between calls, where their inputs are known.

    On several devices, each call would have to exchange them to see if they changed.
    """
    # Within `jax.jit`, they would be part of the program.
    with jax.ensure_compile_time_eval():
        return leaf.with_held(lambda inputs: all(map(_is_known, jax.tree.leaves(inputs))))


def _is_known(x: Any) -> bool:
    """Whether a value is a number, or an array on one device."""
    if isinstance(x, jax.Array):
        return not isinstance(x, Tracer) and len(x.devices()) == 1
    return isinstance(x, np.ndarray | np.generic | float | int)


@jax.jit
def _map_of(leaf: Factored) -> AffineMap | None:
    """The map of a leaf; None if it has none separate from the dense weight."""
    weight = leaf.apart(as_matrix=True)
    return weight.map if isinstance(weight, Weight) else None


def unnamed(leaf: Factored) -> Factored:
    """Returns what a leaf's map is made of: leaves of one shape then share compiled functions.

    Args:
        leaf: The leaf.

    Returns:
        The leaf without its sites' names, and without what its map does not read.
    """
    count = len(leaf.forms)
    tags = Tags(("",) * count, ((),) * count, (False,) * count, ())
    return replace(leaf, reads=None, reads_form=None, unplaced=(), tags=tags)


def _as_array(strength: Any) -> Any:
    """A strength as an array, so that another number uses the same program."""
    return strength if isinstance(strength, jax.Array) else np.asarray(strength)


def _leaf(
    tree: Tree,
    at: int,
    sites: list[tuple[Site, str]],
    numbers: dict[str, list[int]],
    names: tuple[tuple[str, str, Metadata], ...],
    unplaced: list[tuple[int, str, tuple[Any, Update]]],
) -> Factored:
    """A leaf with the chains of the sites that it holds."""
    reads, reads_form = None, None
    for site, part in sites:
        if part == "bias" and site.reads_base and site.weight:
            reads, reads_form = tree.leaf(site.weight), site.weight_form
    forms = [site.bias_form if part == "bias" else site.weight_form for site, part in sites]
    return Factored(
        tree.leaves[at],
        tuple(site.chain for site, _ in sites),
        reads,
        tuple(pair for _, _, pair in unplaced),
        None,
        tuple(form for form in forms if form is not None),
        reads_form,
        Tags(
            tuple(site.name for site, _ in sites),
            tuple(tuple(numbers[site.name]) for site, _ in sites),
            tuple(site.transposed for site, _ in sites),
            names,
            tuple((number, site) for number, site, _ in unplaced),
        ),
    )


def detach(leaves: Any) -> tuple[Any, list[Adapter]]:
    """Splits a tree from `attach` into the base and the adapters, bit for bit.

    Args:
        leaves: The tree.

    Returns:
        ``(params, adapters)``: the same leaf objects as attached (for a tied model, those of its
        untied form), and the adapters in order, with their names and strengths.

    Raises:
        AdapterError: If nothing is attached.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="style")
        >>> params = {"proj.weight": jnp.zeros((2, 3))}
        >>> base, adapters = detach(attach(params, lora))
        >>> base["proj.weight"] is params["proj.weight"], adapters
        (True, [style: LoRA rank 1 at 1 site, strength 1 (proj)])

    Source: docs/design.md.
    """
    flat, treedef = jax.tree.flatten(leaves, is_leaf=is_factored)
    attached = [leaf for leaf in flat if is_factored(leaf)]
    if not attached:
        raise AdapterError(
            "detach: no leaf has adapters attached, expected a tree from jaxmix.attach."
        )
    labels = attached[0].tags.adapters
    updates: list[dict[str, Update]] = [{} for _ in labels]
    strengths: list[Any] = [1.0] * len(labels)
    for leaf in attached:
        tags = leaf.tags
        for site, numbers, chain, is_transposed in zip(
            tags.sites, tags.parts, leaf.chains, tags.transposed, strict=True
        ):
            for number, (strength, update) in zip(numbers, chain, strict=True):
                strengths[number] = strength
                updates[number][site] = update.with_transposed_weight() if is_transposed else update
        for (number, site), (strength, update) in zip(tags.unplaced, leaf.unplaced, strict=True):
            strengths[number] = strength
            updates[number][site] = update
    base = treedef.unflatten([leaf.base if is_factored(leaf) else leaf for leaf in flat])
    return base, [
        Adapter(by_site, _number(strength), *label)
        for by_site, strength, label in zip(updates, strengths, labels, strict=True)
    ]


def _number(strength: Any) -> Any:
    """A strength as it was given."""
    return float(strength) if isinstance(strength, np.ndarray) else strength
