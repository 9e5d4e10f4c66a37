"""Applies chains of updates to the leaves of a params tree: the dense way to run a mix."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax

from jaxmix.apply.joined import joints_of, settle
from jaxmix.apply.sharded import apply as apply_to_leaf
from jaxmix.families.base import Chain, Part
from jaxmix.placement import Site, resolve
from jaxmix.placement.buffers import as_array, buffer_of
from jaxmix.placement.layout import Layout
from jaxmix.placement.params import check_no_path
from jaxmix.placement.quantized import dequantized

__all__ = ["apply"]


def apply(
    params: Any,
    chains: Mapping[str, Chain],
    *,
    layout: Layout | str | None = None,
    donate: bool = False,
) -> Any:
    """Applies a chain of updates at each site: ``W' = uₙ(… u₁(W))``.

    Args:
        params: Any pytree of weights.
        chains: ``{site: ((strength, update), …)}``, in order of application.
        layout: Where sites are; None to infer it from the leaves.
        donate: Whether to reuse the buffers of the changed leaves for the result.

    Returns:
        A tree of the same structure; untouched leaves are the same objects.

    Raises:
        LayoutError: If sites find no leaf, more than one, a tied one, or one that is not of floats.
        ShapeError: If factors do not fit their weights.
    """
    if not chains:
        check_no_path(params)
        return params
    resolved = resolve(params, chains, layout)
    tree = resolved.tree
    leaves = list(tree.leaves)
    joints, settled = joints_of(resolved.sites), dict[tuple[str, Part], Chain]()

    def chain_of(site: Site, part: Part) -> Chain:
        """A site's chain. That of a part of a fused weight holds the part of the result."""
        if site.name not in joints:
            return site.chain
        if (site.name, part) not in settled:
            chains = settle(
                joints[site.name], part, lambda name: _array(leaves[tree.positions[name]])
            )
            settled.update({(name, part): chain for name, chain in chains.items()})
        return settled.pop((site.name, part))

    # Biases first: their maps may read weights, whose buffers may be donated afterwards.
    for site in resolved.sites:
        if site.bias and site.bias_form:
            reads = site.reads_base and site.weight
            at = tree.positions[site.bias.leaf]
            leaves[at] = apply_to_leaf(
                _array(leaves[at]),
                chain_of(site, "bias"),
                site.bias_form,
                base=_array(tree.leaf(reads)) if reads else None,
                base_form=site.weight_form if reads else None,
            )
    # A buffer is donated only if a single leaf has it, and no factor.
    held = [*tree.leaves, *jax.tree.leaves(chains)] if donate else []
    counts = Counter(map(buffer_of, held))
    for site in resolved.sites:
        if site.weight and site.weight_form and site.changes_weight:
            at = tree.positions[site.weight.leaf]
            # First, since it may read leaves that are donated below.
            chain = chain_of(site, "weight")
            leaf = leaves[at]
            # A leaf that holds several sites is a new one from the second site on.
            is_ours = leaf is not tree.leaves[at] or (donate and counts[buffer_of(leaf)] == 1)
            may_donate = is_ours and isinstance(leaf, jax.Array)
            leaves[at] = apply_to_leaf(_array(leaf), chain, site.weight_form, donate=may_donate)
    return tree.with_leaves(leaves)


def _array(leaf: Any) -> jax.Array:
    """A leaf as a JAX array of its own dtype; a quantized one dequantized."""
    return as_array(dequantized(leaf))
