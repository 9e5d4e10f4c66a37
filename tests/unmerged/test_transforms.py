"""Factored leaves under JAX's transformations, in 16 bits and on several devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmix
from jaxmix import Adapter
from jaxmix.families import OFT, LoHa, LoRA

from ..uncompiled import uncompiled


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


def mixed(seed: int = 0) -> jaxmix.Mix:
    """Returns a mix of a LoRA, an OFT, a LoHa and a DoRA on a weight (8, 16)."""
    magnitude = 1 + abs(normal(8))
    first = {"a": LoRA(normal(2, 16, seed=seed), normal(8, 2), 0.5)}
    second = {"a": OFT(0.3 * normal(8, 1, seed=seed))}
    third = {"a": LoHa(normal(8, 2), normal(2, 16), normal(8, 2), normal(2, 16), 0.1)}
    fourth = {"a": LoRA(normal(2, 16), normal(8, 2), 0.5, magnitude=magnitude)}
    updates = {"lora": first, "oft": second, "loha": third, "dora": fourth}
    return jaxmix.mix(*(Adapter(update, 0.7, name=name) for name, update in updates.items()))


PARAMS = {"a.weight": normal(8, 16), "a.bias": normal(8)}
X = normal(5, 16)


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T + params["a.bias"][None])


def loss(params: Any, x: Any) -> Any:
    return (run(params, x) ** 2).sum()


factored_run, factored_loss = (jaxmix.factored(function, "factored") for function in (run, loss))


def assert_close(left: Any, right: Any, bound: float = 3e-5) -> None:
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert float(jnp.abs(x - y).max() / (1e-3 + jnp.abs(y).max())) < bound


def test_gradients_match_composed_weights() -> None:
    """Gradients by adapters, strengths, base and leaves match, and second derivatives do."""
    adapters = mixed()
    factored_gradients = jax.jit(
        jax.grad(lambda a, p: factored_loss(jaxmix.attach(p, a), X), (0, 1))
    )
    composed_gradients = jax.jit(jax.grad(lambda a, p: loss(jaxmix.compose(p, a), X), (0, 1)))
    assert_close(factored_gradients(adapters, PARAMS), composed_gradients(adapters, PARAMS))
    by_leaf = jax.jit(jax.grad(factored_loss))(jaxmix.attach(PARAMS, adapters), X)
    assert_close(
        by_leaf["a.weight"].chains[0][0][1].a,
        factored_gradients(adapters, PARAMS)[0].parts[0].updates["a"].a,
    )

    def second_derivative(function: Any, combine: Any) -> Any:
        gradient = jax.grad(lambda s: function(combine(PARAMS, adapters * s), X))
        return jax.jit(lambda s: jax.jvp(gradient, (s,), (s,)))(1.0)

    assert_close(
        second_derivative(factored_loss, jaxmix.attach), second_derivative(loss, jaxmix.compose)
    )


def test_vmap_over_adapters() -> None:
    """Adapters of equal shapes can be stacked and mapped over."""
    mixes = [mixed(1), mixed(2)]
    stack = jax.tree.map(lambda *arrays: jnp.stack([jnp.asarray(v) for v in arrays]), *mixes)
    actual = jax.jit(jax.vmap(lambda a: factored_run(jaxmix.attach(PARAMS, a), X)))(stack)
    with uncompiled():
        assert_close(actual, jnp.stack([run(jaxmix.compose(PARAMS, a), X) for a in mixes]))


def test_new_strengths_and_adapters_do_not_retrace() -> None:
    count = [0]

    def counted(params: Any, x: Any) -> Any:
        count[0] += 1
        return run(params, x)

    jitted = jax.jit(jaxmix.factored(counted))
    for adapters in (mixed(), mixed(3), 0.2 * mixed(), mixed() * jnp.float32(0.4)):
        renamed = jaxmix.mix(*(part.renamed(f"new {part.name}") for part in adapters.parts))
        for mix in (adapters, renamed):
            assert_close(jitted(jaxmix.attach(PARAMS, mix), X), run(jaxmix.compose(PARAMS, mix), X))
    assert count == [1]


def test_eval_shape_gives_the_output_shape() -> None:
    shapes = jax.eval_shape(lambda: jaxmix.attach(PARAMS, mixed()))
    assert jax.eval_shape(factored_run, shapes, X).shape == (5, 8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("has_narrow_tokens", [True, False], ids=["tokens too", "weights only"])
def test_16_bit_weights_keep_their_dtype(dtype: Any, has_narrow_tokens: bool) -> None:
    """Tokens and weights keep their dtypes under strict promotion."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    x = X.astype(dtype) if has_narrow_tokens else X

    def product(params: Any, x: Any) -> Any:
        return x @ params["a.weight"].T.astype(x.dtype)

    with jax.numpy_dtype_promotion("strict"):
        actual = jax.jit(jaxmix.factored(product, "factored"))(jaxmix.attach(params, mixed()), x)
    params32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with uncompiled():
        expected = product(jaxmix.compose(params32, mixed()), X)
    assert actual.dtype == x.dtype
    assert_close(actual.astype(jnp.float32), expected, 2e-2 if has_narrow_tokens else 1e-2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_give_sharded_outputs(kind: AxisType) -> None:
    """On eight devices the result is that of one device, sharded like x."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, P("model", None))
    weight = jax.device_put(PARAMS["a.weight"], sharding)
    x = jax.device_put(normal(4, 16), NamedSharding(mesh, P("data", None)))
    with jax.set_mesh(mesh):
        leaves = jaxmix.attach({"a.weight": weight}, mixed())
        assert leaves["a.weight"].base.sharding == sharding

        def product(params: Any, x: Any) -> Any:
            return x @ params["a.weight"].T

        actual = jax.jit(jaxmix.factored(product, "factored"))(leaves, x)
    expected = normal(4, 16) @ jaxmix.compose(PARAMS, mixed())["a.weight"].T
    assert_close(np.asarray(actual), np.asarray(expected))
    assert actual.sharding.spec == P("data", "model")


def test_factored_leaves_run_within_shard_map() -> None:
    """Rows are split over the devices, and leaves replicated."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    leaves = jaxmix.attach(PARAMS, mixed())
    sharded_run = jax.shard_map(
        factored_run, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows")
    )
    x = normal(16, 16)
    assert_close(jax.jit(sharded_run)(leaves, x), run(jaxmix.compose(PARAMS, mixed()), x))


def test_leaves_returned_by_jit_detach_unchanged() -> None:
    """The adapters at each site are part of the structure, so each structure is compiled."""
    params = {**PARAMS, "b.weight": normal(8, 16, seed=1)}

    def lora(site: str, seed: int) -> dict[str, Any]:
        return {site: LoRA(normal(2, 16, seed=seed), normal(8, 2, seed=seed), 0.5)}

    identity = jax.jit(lambda leaves: leaves)
    for first, second in (("a", "b"), ("b", "a")):
        parts = [Adapter(lora(first, 1), name="one"), Adapter(lora(second, 2), name="two")]
        _, actual = jaxmix.detach(identity(jaxmix.attach(params, parts)))
        assert [part.sites for part in actual] == [(first,), (second,)]
        assert_close(jax.tree.leaves(actual[0].updates), jax.tree.leaves(parts[0].updates))


def test_sharding_constraint_applies_to_the_base() -> None:
    """`jax.lax.with_sharding_constraint` of a weight does not make it dense."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("model", None))

    def product(params: Any, x: Any) -> Any:
        return x @ jax.lax.with_sharding_constraint(params["a.weight"], sharding).T

    leaves = jaxmix.attach(PARAMS, mixed())
    jitted = jax.jit(jaxmix.factored(product, "factored"))
    assert_close(jitted(leaves, X), X @ jaxmix.compose(PARAMS, mixed())["a.weight"].T)
    jaxpr = str(jax.make_jaxpr(jaxmix.factored(product, "factored"))(leaves, X))
    constrained = next(line for line in jaxpr.splitlines() if "sharding_constraint" in line)
    assert "f32[8,16]" in constrained
