"""`attach` and `detach`: adapters put beside the leaves of a tree, and taken away again."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxmix.adapter import Adapter, Mixable, words
from jaxmix.affine import AffineMap
from jaxmix.errors import AdapterError
from jaxmix.families import Update
from jaxmix.metadata import Metadata
from jaxmix.mixing import several
from jaxmix.placement import Site, resolve
from jaxmix.placement.layout import Layout
from jaxmix.placement.params import check_no_path
from jaxmix.placement.tree import Tree
from jaxmix.unmerged.leaf import Factored, Tags
from jaxmix.unmerged.weight import Weight

__all__ = ["attach", "detach", "is_factored"]


def is_factored(x: Any) -> bool:
    """Whether something is a leaf that keeps base and updates apart."""
    return isinstance(x, Factored)


def attach(
    params: Any,
    adapters: Mixable | Iterable[Mixable],
    *,
    layout: Layout | str | None = None,
    ready: bool = False,
) -> Any:
    """The params with adapters beside them: leaves keep ``W`` and ``(L, R, Δ)`` apart.

    What `jaxmix.factored` runs: ``factored(fn)(attach(params, adapters), x)`` is
    ``fn(compose(params, adapters), x)``, and no weight is made. Nothing is computed and nothing
    copied here, so other strengths or adapters are another tree of the same leaves; of equal shapes
    they are the same program.

    Args:
        params: the base, any pytree of weights, as `jaxmix.compose` takes it; leaves may be qwix's
            quantized arrays, which stay so.
        adapters: one adapter or mix, or several, the one to apply first first.
        layout: where the sites lie in the tree, as in `jaxmix.compose`.
        ready: make the operators here, once, and keep them beside: rotations solved, norms taken,
            factors multiplied. Calls are faster then, where adapters turn or read the weight; new
            strengths need a new tree; gradients reach the operators and not the updates.

    Returns:
        A tree of the same structure, with a `Factored` in place of each leaf that adapters change;
        it is a pytree, whose leaves are the base's, the updates' arrays and the strengths.

    Raises:
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`.
        AdapterError: as `jaxmix.compose`; or if an adapter is attached to the tree already.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix import factored
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)})
        >>> leaves = attach({"proj.weight": jnp.zeros((2, 3))}, [0.5 * lora])
        >>> factored(lambda p, x: x @ p["proj.weight"].T)(leaves, jnp.ones((1, 3))).tolist()
        [[1.5, 1.5]]

    Source: DESIGN.md, how a mix is computed.
    """
    if any(map(is_factored, jax.tree.leaves(params, is_leaf=is_factored))):
        raise AdapterError(
            "attach: the params have adapters attached already, expected a base. Take them off "
            "with jaxmix.detach and attach all together, in order: attach(params, [first, second])."
        )
    parts = several(adapters, "attach").parts
    by_site = {
        site: tuple((_as_array(strength), update) for strength, update in word)
        for site, word in words(parts).items()
    }
    if not by_site:
        check_no_path(params)
        return params
    numbers: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        for site in part.updates:
            numbers.setdefault(site, []).append(number)
    resolved = resolve(params, by_site, layout)
    tree = resolved.tree
    names = tuple((part.name, part.source, part.metadata) for part in parts)
    leaves = list(tree.leaves)
    tenants: dict[int, list[tuple[Site, str]]] = {}
    for site in resolved.sites:
        if site.bias and site.bias_form:
            tenants.setdefault(tree.where[site.bias.leaf], []).append((site, "bias"))
        if site.weight and site.weight_form and site.changes_weight:
            tenants.setdefault(tree.where[site.weight.leaf], []).append((site, "weight"))
    placed = {site.name for sites in tenants.values() for site, _ in sites}
    lost = [
        (number, site, pair)
        for site, word in by_site.items()
        if site not in placed
        for number, pair in zip(numbers[site], word, strict=True)
    ]
    for at, sites in tenants.items():
        leaves[at] = _leaf(tree, at, sites, numbers, names, lost)
        lost = []
    if ready:
        leaves = [_ready(leaf) if is_factored(leaf) else leaf for leaf in leaves]
    return tree.with_leaves(leaves)


def _ready(leaf: Factored) -> Factored:
    """A leaf with its map made."""
    made = _made(leaf)
    return leaf if made is None else replace(leaf, made=made)


@jax.jit
def _made(leaf: Factored) -> AffineMap | None:
    """The map of a leaf; None where it has none apart from the dense weight."""
    weight = leaf.apart(whole=True)
    return weight.map if isinstance(weight, Weight) else None


def _as_array(strength: Any) -> Any:
    """A strength as an array: another number is no other program then."""
    return strength if isinstance(strength, jax.Array) else np.asarray(strength)


def _leaf(
    tree: Tree,
    at: int,
    sites: list[tuple[Site, str]],
    numbers: dict[str, list[int]],
    names: tuple[tuple[str, str, Metadata], ...],
    lost: list[tuple[int, str, tuple[Any, Update]]],
) -> Factored:
    """A leaf and what its tenants do to it."""
    reads, reads_form = None, None
    for site, part in sites:
        if part == "bias" and site.reads_base and site.weight:
            reads, reads_form = tree.leaf(site.weight), site.weight_form
    forms = [site.bias_form if part == "bias" else site.weight_form for site, part in sites]
    return Factored(
        tree.leaves[at],
        tuple(site.chain for site, _ in sites),
        reads,
        tuple(pair for _, _, pair in lost),
        None,
        tuple(form for form in forms if form is not None),
        reads_form,
        Tags(
            tuple(site.name for site, _ in sites),
            tuple(tuple(numbers[site.name]) for site, _ in sites),
            tuple(site.transposed for site, _ in sites),
            names,
            tuple((number, site) for number, site, _ in lost),
        ),
    )


def detach(leaves: Any) -> tuple[Any, list[Adapter]]:
    """The base and the adapters out of a tree that `attach` made, bit for bit.

    Args:
        leaves: the tree.

    Returns:
        ``(params, adapters)``: the very leaves that were given (of a tied model, those of its
        untied form), and the adapters in order, with their names and strengths.

    Raises:
        AdapterError: if nothing is attached.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(jnp.ones((1, 3)), jnp.ones((2, 1)), 1.0)}, name="style")
        >>> params = {"proj.weight": jnp.zeros((2, 3))}
        >>> base, adapters = detach(attach(params, lora))
        >>> base["proj.weight"] is params["proj.weight"], adapters
        (True, [style: LoRA rank 1 at 1 site, strength 1 (proj)])

    Source: DESIGN.md, public API.
    """
    flat, treedef = jax.tree.flatten(leaves, is_leaf=is_factored)
    held = [leaf for leaf in flat if is_factored(leaf)]
    if not held:
        raise AdapterError(
            "detach: no leaf has adapters beside it, expected a tree that jaxmix.attach made."
        )
    names = held[0].tags.adapters
    updates: list[dict[str, Update]] = [{} for _ in names]
    strengths: list[Any] = [1.0] * len(names)
    for leaf in held:
        tags = leaf.tags
        for site, numbers, word, turned in zip(
            tags.sites, tags.parts, leaf.words, tags.turned, strict=True
        ):
            for number, (strength, update) in zip(numbers, word, strict=True):
                strengths[number] = strength
                updates[number][site] = update.with_transposed_weight() if turned else update
        for (number, site), (strength, update) in zip(tags.beside, leaf.beside, strict=True):
            strengths[number] = strength
            updates[number][site] = update
    base = treedef.unflatten([leaf.base if is_factored(leaf) else leaf for leaf in flat])
    made = zip(updates, strengths, names, strict=True)
    return base, [Adapter(own, _number(s), *labels) for own, s, labels in made]


def _number(strength: Any) -> Any:
    """A strength as it was given."""
    return float(strength) if isinstance(strength, np.ndarray) else strength
