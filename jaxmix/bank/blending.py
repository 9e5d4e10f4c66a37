"""Leaves at which a row's strengths do not simply weigh operators: all members are attached."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxmix.adapter import Mixable
from jaxmix.affine import AffineMap
from jaxmix.apply.plan import compiled_maps
from jaxmix.bank.building import mix_all
from jaxmix.bank.leaves import BankLeaf
from jaxmix.errors import UnsupportedError
from jaxmix.placement.form import Form
from jaxmix.placement.layout import Layout
from jaxmix.placement.quantized import dequantized
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

    At a strength of zero a member changes nothing, even if it has inf or NaN in a factor or in its
    map: DoRA over a row of zeros divides zero by zero. At any other strength such a member makes
    the leaf NaN.

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
    """The leaf with finite updates and maps, whose strengths are NaN where others took part."""
    array, reads = leaf.base, leaf.reads
    if any(update.reads_base for chain in leaf.chains for _, update in chain):
        array = jnp.asarray(dequantized(array))
        reads = None if reads is None else jnp.asarray(dequantized(reads))

    def finite(form: Form, strength: Array, update: Any) -> tuple[Array, Any]:
        # At a strength of one, so that this is computed once and not for each row; and alone, so
        # that it does not depend on other members.
        (own,) = compiled_maps(array, reads, ((1.0, update),), form, leaf.reads_form)
        return _finite(strength, update, own)

    chains = tuple(
        tuple(finite(form, *pair) for pair in chain)
        for form, chain in zip(leaf.forms, leaf.chains, strict=True)
    )
    return replace(leaf, chains=chains)


def _finite(strength: Array, update: Any, own: AffineMap) -> tuple[Array, Any]:
    """Replaces an update by ones, and its strength by NaN unless it is zero, if it is not finite.

    Families divide by norms of their factors and of the weight, so zeros would not do.
    """
    arrays = jax.tree.leaves((update, own))
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()
    takes_part = ~is_finite & (strength != 0)
    finite = jax.tree.map(lambda x: jnp.where(is_finite, x, jnp.ones_like(x)), update)
    return jnp.where(takes_part, jnp.full_like(strength, np.nan), strength), finite
