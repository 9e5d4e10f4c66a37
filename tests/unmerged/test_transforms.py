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
    """A LoRA, a rotation, a LoHa and a DoRA on a weight (8, 16)."""
    magnitude = 1 + abs(normal(8))
    first = {"a": LoRA(normal(2, 16, seed=seed), normal(8, 2), 0.5)}
    second = {"a": OFT(0.3 * normal(8, 1, seed=seed))}
    third = {"a": LoHa(normal(8, 2), normal(2, 16), normal(8, 2), normal(2, 16), 0.1)}
    fourth = {"a": LoRA(normal(2, 16), normal(8, 2), 0.5, magnitude=magnitude)}
    updates = {"lora": first, "oft": second, "loha": third, "dora": fourth}
    return jaxmix.mix(*(Adapter(u, 0.7, name=n) for n, u in updates.items()))


PARAMS = {"a.weight": normal(8, 16), "a.bias": normal(8)}
X = normal(5, 16)


def run(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["a.weight"].T + params["a.bias"][None])


def loss(params: Any, x: Any) -> Any:
    return (run(params, x) ** 2).sum()


factored_run, factored_loss = (jaxmix.factored(f, "factored") for f in (run, loss))


def close(left: Any, right: Any, bound: float = 3e-5) -> None:
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert float(jnp.abs(x - y).max() / (1e-3 + jnp.abs(y).max())) < bound


def test_gradients_match_composed_weights() -> None:
    """By adapters and strengths, by the base, by leaves, and of second order."""
    adapters = mixed()
    ours = jax.jit(jax.grad(lambda a, p: factored_loss(jaxmix.attach(p, a), X), (0, 1)))
    theirs = jax.jit(jax.grad(lambda a, p: loss(jaxmix.compose(p, a), X), (0, 1)))
    close(ours(adapters, PARAMS), theirs(adapters, PARAMS))
    by_leaf = jax.jit(jax.grad(factored_loss))(jaxmix.attach(PARAMS, adapters), X)
    close(by_leaf["a.weight"].chains[0][0][1].a, ours(adapters, PARAMS)[0].parts[0].updates["a"].a)

    def along(f: Any, combined: Any) -> Any:
        gradient = jax.grad(lambda s: f(combined(PARAMS, adapters * s), X))
        return jax.jit(lambda s: jax.jvp(gradient, (s,), (s,)))(1.0)

    close(along(factored_loss, jaxmix.attach), along(loss, jaxmix.compose))


def test_vmap_over_adapters() -> None:
    """Adapters of equal shapes."""
    both = [mixed(1), mixed(2)]
    stack = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *both)
    got = jax.jit(jax.vmap(lambda a: factored_run(jaxmix.attach(PARAMS, a), X)))(stack)
    with uncompiled():
        close(got, jnp.stack([run(jaxmix.compose(PARAMS, a), X) for a in both]))


def test_new_strengths_and_adapters_do_not_retrace() -> None:
    count = [0]

    def counted(params: Any, x: Any) -> Any:
        count[0] += 1
        return run(params, x)

    jitted = jax.jit(jaxmix.factored(counted))
    for adapters in (mixed(), mixed(3), 0.2 * mixed(), mixed() * jnp.float32(0.4)):
        renamed = jaxmix.mix(*(part.renamed(f"new {part.name}") for part in adapters.parts))
        for mix in (adapters, renamed):
            close(jitted(jaxmix.attach(PARAMS, mix), X), run(jaxmix.compose(PARAMS, mix), X))
    assert count == [1]


def test_eval_shape() -> None:
    shapes = jax.eval_shape(lambda: jaxmix.attach(PARAMS, mixed()))
    assert jax.eval_shape(factored_run, shapes, X).shape == (5, 8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kept", [True, False], ids=["tokens too", "weights only"])
def test_16_bits(dtype: Any, kept: bool) -> None:
    """Under strict promotion; tokens and weights keep their dtypes."""
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    x = X.astype(dtype) if kept else X

    def product(params: Any, x: Any) -> Any:
        return x @ params["a.weight"].T.astype(x.dtype)

    with jax.numpy_dtype_promotion("strict"):
        got = jax.jit(jaxmix.factored(product, "factored"))(jaxmix.attach(params, mixed()), x)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    with uncompiled():
        want = product(jaxmix.compose(wide, mixed()), X)
    assert got.dtype == x.dtype
    close(got.astype(jnp.float32), want, 2e-2 if kept else 1e-2)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded(kind: AxisType) -> None:
    """Over eight devices: the result of one device, sharded like x."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    place = NamedSharding(mesh, P("model", None))
    weight = jax.device_put(PARAMS["a.weight"], place)
    x = jax.device_put(normal(4, 16), NamedSharding(mesh, P("data", None)))
    with jax.set_mesh(mesh):
        leaves = jaxmix.attach({"a.weight": weight}, mixed())
        assert leaves["a.weight"].base.sharding == place

        def product(params: Any, x: Any) -> Any:
            return x @ params["a.weight"].T

        got = jax.jit(jaxmix.factored(product, "factored"))(leaves, x)
    want = normal(4, 16) @ jaxmix.compose(PARAMS, mixed())["a.weight"].T
    close(np.asarray(got), np.asarray(want))
    assert got.sharding.spec == P("data", "model")


def test_within_shard_map() -> None:
    """Rows over devices, leaves replicated."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    leaves = jaxmix.attach(PARAMS, mixed())
    over = jax.shard_map(factored_run, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"))
    x = normal(16, 16)
    close(jax.jit(over)(leaves, x), run(jaxmix.compose(PARAMS, mixed()), x))


def test_leaves_returned_by_jit_detach_unchanged() -> None:
    """The adapters at each site are part of the structure, so they select the program."""
    params = {**PARAMS, "b.weight": normal(8, 16, seed=1)}

    def lora(site: str, seed: int) -> dict[str, Any]:
        return {site: LoRA(normal(2, 16, seed=seed), normal(8, 2, seed=seed), 0.5)}

    same = jax.jit(lambda leaves: leaves)
    for first, second in (("a", "b"), ("b", "a")):
        parts = [Adapter(lora(first, 1), name="one"), Adapter(lora(second, 2), name="two")]
        _, got = jaxmix.detach(same(jaxmix.attach(params, parts)))
        assert [part.sites for part in got] == [(first,), (second,)]
        close(jax.tree.leaves(got[0].updates), jax.tree.leaves(parts[0].updates))


def test_sharding_constraint_applies_to_the_base() -> None:
    """`jax.lax.with_sharding_constraint` of a weight makes no dense weight."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, P("model", None))

    def product(params: Any, x: Any) -> Any:
        return x @ jax.lax.with_sharding_constraint(params["a.weight"], place).T

    leaves = jaxmix.attach(PARAMS, mixed())
    run_it = jax.jit(jaxmix.factored(product, "factored"))
    close(run_it(leaves, X), X @ jaxmix.compose(PARAMS, mixed())["a.weight"].T)
    text = str(jax.make_jaxpr(jaxmix.factored(product, "factored"))(leaves, X))
    constrained = next(line for line in text.splitlines() if "sharding_constraint" in line)
    assert "f32[8,16]" in constrained
