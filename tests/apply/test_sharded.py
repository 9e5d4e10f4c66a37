"""Leaves on several devices keep their shardings, on axes of both kinds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmix.apply import plan, sharded
from jaxmix.families import Replace
from jaxmix.placement.form import Form

NEW = np.arange(8, dtype=np.float32).reshape(4, 2)
CHAIN = ((1.0, Replace(NEW)),)


def mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("x",), axis_types=(kind,), devices=jax.devices()[:2])


@pytest.mark.parametrize("donate", [False, True])
def test_explicit_axes_keep_the_sharding_of_the_type(donate: bool) -> None:
    """In a leaf of 16 bits too; the form states no sharding there."""
    sharding = NamedSharding(mesh(AxisType.Explicit), P(None, "x"))
    leaf = jax.device_put(jnp.ones((4, 2), jnp.bfloat16), sharding)
    out = sharded.apply(leaf, CHAIN, Form(), donate=donate)
    assert out.sharding == sharding and out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), NEW)


@pytest.mark.parametrize("is_moved", [False, True])
def test_result_elsewhere_is_moved_to_the_forms_sharding(
    is_moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that is there already is returned as it is."""
    sharding = NamedSharding(mesh(AxisType.Auto), P("x"))
    there, elsewhere = jax.device_put(NEW, sharding), jnp.asarray(NEW)
    found = elsewhere if is_moved else there
    monkeypatch.setattr(plan, "apply", lambda *args, **how: found)
    out = sharded.apply(there, CHAIN, Form(sharding=sharding))
    assert out.sharding == sharding and (out is there) is not is_moved
    assert sharded.apply(there, CHAIN, Form()) is found


def test_traced_result_is_left_to_the_caller() -> None:
    """Under an outer trace no array can be moved; the form's sharding is a constraint."""
    sharding = NamedSharding(mesh(AxisType.Auto), P("x"))

    def run(leaf: Any) -> Any:
        return sharded.apply(leaf, CHAIN, Form(sharding=sharding))

    jaxpr = str(jax.make_jaxpr(run)(NEW))
    assert "sharding_constraint" in jaxpr and "device_put" not in jaxpr
