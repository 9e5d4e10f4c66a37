"""Leaves at which a row's strengths do not simply weigh operators: all members are attached."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmix.adapter import Mixable
from jaxmix.bank.building import mix_all
from jaxmix.bank.leaves import BankLeaf
from jaxmix.errors import UnsupportedError
from jaxmix.placement.layout import Layout
from jaxmix.unmerged import attach
from jaxmix.unmerged.attaching import is_factored
from jaxmix.unmerged.leaf import Factored

__all__ = ["attached"]


def attached(
    params: Any,
    members: Mapping[str, Mixable] | None,
    strengths: Sequence[Array],
    layout: Layout | str | None,
    leaves: Sequence[BankLeaf],
) -> Any:
    """Attaches all members to the params, in order, each at its strength.

    At a strength of zero a member changes nothing, even if it has inf or NaN in a factor. At any
    other strength such a member makes the leaf NaN.

    Args:
        params: The base.
        members: The members by name; None if the bank does not have them.
        strengths: One for each member.
        layout: Where the sites are in the tree.
        leaves: The bank's leaves.

    Returns:
        The params with a `Factored` in place of each leaf that members change.

    Raises:
        UnsupportedError: If there are no members.
    """
    if members is None:
        leaf = next(leaf.name for leaf in leaves if not leaf.is_linear)
        raise UnsupportedError(
            "strengths for each member need the members themselves, since some do more than add to "
            f"the weight (at {leaf}), but this bank is an argument of a traced function. Make it "
            "with Bank(…, blend=True)."
        )
    tree = attach(params, mix_all(members, strengths), layout=layout)
    return jax.tree.map(lambda x: _guarded(x) if is_factored(x) else x, tree, is_leaf=is_factored)


def _guarded(leaf: Factored) -> Factored:
    """The leaf with finite updates, whose strengths are NaN where inf or NaN took part."""
    chains = tuple(tuple(_finite(*pair) for pair in chain) for chain in leaf.chains)
    return replace(leaf, chains=chains)


def _finite(strength: Array, update: Any) -> tuple[Array, Any]:
    """Replaces inf and NaN by ones, and the strength by NaN unless it is zero.

    Families divide by norms of their factors, so zeros would not do.
    """
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(update)]).all()
    takes_part = ~is_finite & (strength != 0)
    finite = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.ones_like(x)), update)
    return jnp.where(takes_part, jnp.full_like(strength, np.nan), strength), finite
