"""Meshes, leaves on them, and the programs that an eager `compose` runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmix.apply import plan

__all__ = ["flat", "grid", "placed", "programs"]


def flat() -> jax.sharding.Mesh:
    """Returns a mesh of eight devices in a row."""
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def grid(kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """Returns a mesh of two by four devices."""
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind,) * 2)


def placed(leaf: Any, mesh: jax.sharding.Mesh, *spec: Any) -> jax.Array:
    """Returns a leaf on the mesh."""
    return jax.device_put(np.asarray(leaf), NamedSharding(mesh, P(*spec)))


@contextmanager
def programs(monkeypatch: Any) -> Iterator[list[Any]]:
    """Records the very programs that `compose` runs inside this context."""
    seen: list[Any] = []

    def spied(real: Any) -> Any:
        def run(leaf: Any, base: Any, word: Any, form: Any, base_form: Any, at: Any) -> Any:
            compiled = real.lower(leaf, base, word, form, base_form, at).compile()
            seen.append(compiled)
            return compiled(leaf, base, word, at)

        return run

    with monkeypatch.context() as patch:
        for name in ("_fused", "_fused_in_place"):
            patch.setattr(plan, name, spied(getattr(plan, name)))
        yield seen
