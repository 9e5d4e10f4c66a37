"""Applies updates to leaves on several devices and keeps their shardings.

One program per leaf: XLA gives each device the factors that it needs for its part of Δ, and its
part of a replaced weight. Arrays with a sharding keep it. If a rotation spans parts, they are
exchanged, and no weight is gathered (see `jaxmix.operators.sharded`).

On a mesh with *explicit* axes, JAX's default, each product and each reshape must state the sharding
of its result. This is left to XLA here, as on a mesh with automatic axes; only the result gets the
leaf's own sharding.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import NamedSharding

from jaxmix.apply import plan
from jaxmix.families.base import Chain
from jaxmix.placement.devices import is_explicit
from jaxmix.placement.form import Form

__all__ = ["apply"]


def apply(
    leaf: jax.Array,
    chain: Chain,
    form: Form,
    *,
    base: Any = None,
    base_form: Form | None = None,
    donate: bool = False,
) -> jax.Array:
    """Applies a chain as `jaxmix.apply.plan.apply` does, and keeps the leaf's sharding.

    Args:
        leaf: The leaf.
        chain: Strengths and updates of one site, in order of application.
        form: How the leaf holds the site's tensor, including its sharding.
        base: The base's weight leaf, for maps of a bias that read it; otherwise None.
        base_form: How that leaf holds its tensor.
        donate: Whether to reuse the leaf's buffer for the result.

    Returns:
        The new leaf, of the same shape, dtype and sharding.
    """
    if is_explicit(leaf):
        sharding = jax.typeof(leaf).sharding
        run = _explicit_in_place if donate else _explicit
        return run(leaf, chain, base, form=form, base_form=base_form, sharding=sharding)
    out = plan.apply(leaf, chain, form, base=base, base_form=base_form, donate=donate)
    # A leaf that was moved or sliced may have another sharding; under vmap it is unknown.
    if form.sharding is None or isinstance(out, Tracer) or out.sharding == form.sharding:
        return out
    return jax.device_put(out, form.sharding)


def _automatically(
    leaf: jax.Array, chain: Chain, base: Any, *, form: Form, base_form: Form | None, sharding: Any
) -> jax.Array:
    """`jaxmix.apply.plan.apply` as one function with automatic axes."""

    def run(leaf: jax.Array, chain: Chain, base: Any) -> jax.Array:
        own = NamedSharding(jax.sharding.get_abstract_mesh(), sharding.spec)
        return plan.apply(leaf, chain, replace(form, sharding=own), base=base, base_form=base_form)

    automatic: Any = jax.sharding.auto_axes(run, out_sharding=sharding)
    return automatic(leaf, chain, base)


_jit = partial(jax.jit, static_argnames=("form", "base_form", "sharding"))
_explicit = _jit(_automatically)
_explicit_in_place = _jit(_automatically, donate_argnames="leaf")
