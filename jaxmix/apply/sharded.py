"""Leaves that lie on several devices: what comes back lies there too.

It is one program a leaf, and XLA gives each device what it needs of the factors for its own part of
Δ, of a replaced weight its part; arrays that were put onto devices by hand stay there. Where a
rotation goes across the parts, these are exchanged, and no weight is gathered (`operators.spread`).

A mesh may have *explicit* axes, JAX's default, with which each product and each reshape must say
how its result is laid out. Here that is left to XLA, as on a mesh with automatic axes, and only the
end is fixed: the leaf's own sharding.
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
    word: Chain,
    form: Form,
    *,
    base: Any = None,
    base_form: Form | None = None,
    donate: bool = False,
) -> jax.Array:
    """`jaxmix.apply.plan.apply`, the leaf's sharding kept.

    Args:
        leaf: the leaf.
        word: strengths and updates of one site, the first one first.
        form: how the leaf holds the site's tensor, with `sharding_of` the leaf.
        base: the base's weight leaf, for the map of a bias that reads it; None for none.
        base_form: how that one holds its tensor.
        donate: whether the leaf's buffer may be used for the result.

    Returns:
        The new leaf, of the same shape, dtype and sharding.
    """
    if is_explicit(leaf):
        there = jax.typeof(leaf).sharding
        run = _explicit_in_place if donate else _explicit
        return run(leaf, word, base, form=form, base_form=base_form, there=there)
    out = plan.apply(leaf, word, form, base=base, base_form=base_form, donate=donate)
    # A leaf that had to be moved or cut may come back elsewhere; under vmap nobody can ask.
    if form.sharding is None or isinstance(out, Tracer) or out.sharding == form.sharding:
        return out
    return jax.device_put(out, form.sharding)


def _automatically(
    leaf: jax.Array, word: Chain, base: Any, *, form: Form, base_form: Form | None, there: Any
) -> jax.Array:
    """`jaxmix.apply.plan.apply` as one function in which all axes are automatic."""

    def run(leaf: jax.Array, word: Chain, base: Any) -> jax.Array:
        here = NamedSharding(jax.sharding.get_abstract_mesh(), there.spec)
        own = replace(form, sharding=here)
        return plan.apply(leaf, word, own, base=base, base_form=base_form)

    anywhere: Any = jax.sharding.auto_axes(run, out_sharding=there)
    return anywhere(leaf, word, base)


_jit = partial(jax.jit, static_argnames=("form", "base_form", "there"))
_explicit = _jit(_automatically)
_explicit_in_place = _jit(_automatically, donate_argnames="leaf")
