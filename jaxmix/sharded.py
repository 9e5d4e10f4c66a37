"""Leaves that lie on several devices: what comes back lies there too.

A mesh may have *explicit* axes, JAX's default, with which each product and each reshape must say
how its result is laid out. Here that is left to XLA, as on a mesh with automatic axes, and only the
end is fixed: the leaf's own sharding.
"""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxmix import plan
from jaxmix.plan import Form, Word

__all__ = ["apply", "sharding_of"]


def sharding_of(leaf: Any) -> NamedSharding | None:
    """The sharding that a leaf's result is to have, its mesh with automatic axes.

    Args:
        leaf: any array.

    Returns:
        None for what lies on one device, or is traced and does not say where it lies.
    """
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return None
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or len(leaf.devices()) == 1:
        return None
    return _automatic(sharding)


def apply(
    leaf: jax.Array,
    word: Word,
    form: Form,
    *,
    base: Any = None,
    base_form: Form | None = None,
    donate: bool = False,
) -> jax.Array:
    """`jaxmix.plan.apply`, the leaf's sharding kept.

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
    if isinstance(leaf, jax.core.Tracer):
        if not _is_explicit(there := jax.typeof(leaf).sharding):
            return plan.apply(leaf, word, form, base=base, base_form=base_form)

        def run(leaf: jax.Array, word: Word, base: Any) -> jax.Array:
            return plan.apply(leaf, word, form, base=base, base_form=base_form)

        return jax.sharding.auto_axes(run, out_sharding=there)(leaf, word, base)
    there = leaf.sharding
    leaf, word, base = jax.tree.map(_as_automatic, (leaf, word, base))
    out = plan.apply(leaf, word, form, base=base, base_form=base_form, donate=donate)
    if form.sharding is None:
        return out
    if isinstance(out, jax.core.Tracer):  # under vmap or grad nobody can ask how it lies
        return jax.device_put(out, there) if _is_explicit(there) else out
    # A transposed or indexed leaf may come back otherwise.
    return out if out.sharding == there else jax.device_put(out, there)


def _is_explicit(sharding: Any) -> bool:
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and AxisType.Explicit in mesh.axis_types


def _automatic(sharding: NamedSharding) -> NamedSharding:
    """The same, on a mesh with automatic axes."""
    mesh = sharding.mesh
    if not _is_explicit(sharding) or not isinstance(mesh, Mesh):
        return sharding
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    return NamedSharding(automatic, sharding.spec, memory_kind=sharding.memory_kind)


def _as_automatic(x: Any) -> Any:
    """An array with its sharding seen as automatic; nothing is copied."""
    if (
        isinstance(x, jax.core.Tracer)
        or not isinstance(x, jax.Array)
        or not _is_explicit(x.sharding)
    ):
        return x
    assert isinstance(x.sharding, NamedSharding)
    return jax.device_put(x, _automatic(x.sharding))
