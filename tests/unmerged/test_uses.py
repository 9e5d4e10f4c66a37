"""Each use of a weight is computed with the operators, or reported as dense."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import DenseWeightWarning, UnsupportedError
from jaxmix.families import OFT, ExpertLoRA, LoHa, LoRA
from jaxmix.unmerged.weight import Weight

from ..uncompiled import uncompiled
from .texts import PLACE, dense_refusal, dense_warning

Run = Callable[[Any, Any], Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def lora(inputs: int, outputs: int, rank: int = 3, **options: Any) -> LoRA:
    return LoRA(normal(rank, inputs), normal(outputs, rank), 0.5, **options)


def loha(inputs: int, outputs: int, rank: int = 2) -> LoHa:
    return LoHa(
        normal(outputs, rank),
        normal(rank, inputs),
        normal(outputs, rank),
        normal(rank, inputs),
        0.5,
    )


def oft(inputs: int) -> OFT:
    return OFT(0.3 * normal(inputs // 2, 1))


def dora(inputs: int, outputs: int) -> LoRA:
    return lora(inputs, outputs, magnitude=1 + abs(normal(outputs)))


def adapter(name: str, **updates: Any) -> Adapter:
    return Adapter({site.replace("_", "."): update for site, update in updates.items()}, name=name)


@pytest.fixture(autouse=True)
def draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each test's draws independent of the tests before it."""
    monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(1))


@pytest.fixture
def made_dense(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often a weight is made dense."""
    count, before = [0], Weight.dense

    def dense(self: Weight) -> Any:
        count[0] += 1
        return before(self)

    monkeypatch.setattr(Weight, "dense", dense)
    return count


def difference(
    run: Run, params: Any, mixed: Any, x: Any, layout: Layout | None = None, how: Any = "factored"
) -> float:
    """Returns the largest error of the factored run, relative to the largest expected number."""
    with uncompiled():
        expected = jax.tree.leaves(run(jaxmix.compose(params, mixed, layout=layout), x))
    leaves = jaxmix.attach(params, mixed, layout=layout)
    actual = jax.tree.leaves(eqx.filter_jit(jaxmix.factored(run, how))(leaves, x))
    pairs = zip(actual, expected, strict=True)
    return max(
        float(jnp.abs(actual_leaf - expected_leaf).max() / jnp.abs(expected_leaf).max())
        for actual_leaf, expected_leaf in pairs
    )


# ---------------------------------------------------------------- one matrix

PLAIN = {"a.weight": normal(6, 6)}
ROTATED = jaxmix.mix(adapter("lora", a=lora(6, 6)), adapter("oft", a=oft(6)))


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return x * 2


doubled.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 2,))


def looped(params: Any, x: Any) -> Any:
    def body(carry: Any) -> Any:
        return carry[0] + 1, jnp.tanh(carry[1] @ params["a.weight"])

    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]


def branched(params: Any, x: Any) -> Any:
    w = params["a.weight"]
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w.T)


FACTORED: dict[str, Run] = {
    "as the right operand": lambda p, x: x @ p["a.weight"].T,
    "as the left operand": lambda p, x: p["a.weight"] @ x.T,
    "over its rows": lambda p, x: x @ p["a.weight"],
    "mapped over tokens": lambda p, x: jax.vmap(lambda v: p["a.weight"] @ v)(x),
    "split in heads": lambda p, x: jnp.einsum("bi,ink->bnk", x, p["a.weight"].T.reshape(6, 2, 3)),
    "with axes of one": lambda p, x: x @ p["a.weight"][None, :, None][0].squeeze(1),
    "sliced as a whole": lambda p, x: x @ jax.lax.slice(p["a.weight"], (0, 0), (6, 6)),
    "next to a custom derivative": lambda p, x: doubled(x @ p["a.weight"].T),
    "within jit": lambda p, x: jax.jit(lambda w, x: x @ w.T)(p["a.weight"], x),
    "with a name": lambda p, x: x @ checkpoint_name(p["a.weight"], "a"),
    "put on a device": lambda p, x: x @ jax.device_put(p["a.weight"], jax.devices()[0]),
    "within remat": lambda p, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(p["a.weight"], x),
    "within while": looped,
    "within cond": branched,
    "its gradient by x": lambda p, x: jax.grad(lambda x: jnp.tanh(x @ p["a.weight"]).sum())(x),
    "without its gradient": lambda p, x: x @ jax.lax.stop_gradient(p["a.weight"]),
    "behind a barrier": lambda p, x: (
        jax.lax.optimization_barrier((x @ p["a.weight"], x))[0]
        @ jax.lax.optimization_barrier(p["a.weight"])
    ),
    "cast within remat": lambda p, x: (
        x @ jax.checkpoint(lambda w: w.astype(jnp.float16).astype(x.dtype))(p["a.weight"])
    ),
    "in another dtype": lambda p, x: x @ p["a.weight"].astype(jnp.float16).astype(x.dtype),
}
DENSE: dict[str, Run] = {
    "in a norm": lambda p, _: jnp.linalg.norm(p["a.weight"]),
    "returned": lambda p, _: p,
    "in a custom derivative": lambda p, x: x @ doubled(p["a.weight"]),
    "multiplied by itself": lambda p, _: p["a.weight"] @ p["a.weight"],
    "one column": lambda p, x: x @ p["a.weight"][:, :1],
    "part of its inputs": lambda p, x: jnp.einsum(
        "bi,ink->bnk", x[:, :3], p["a.weight"].reshape(3, 2, 6)
    ),
    "scanned by its rows": lambda p, x: jax.lax.scan(
        lambda c, row: (c + row @ x.T, None), jnp.zeros(len(x)), p["a.weight"]
    )[0],
}


@pytest.mark.one_of(2)
@pytest.mark.parametrize("use", FACTORED)
def test_use_stays_factored(use: str, made_dense: list[int]) -> None:
    bound = 2e-3 if "dtype" in use or "cast" in use else 2e-6
    assert difference(FACTORED[use], PLAIN, ROTATED, normal(4, 6)) < bound
    assert made_dense == [0]


@pytest.mark.parametrize("use", DENSE)
def test_use_makes_the_weight_dense(use: str, made_dense: list[int]) -> None:
    """The result is correct, with a warning; ``how="factored"`` raises an error."""
    shape = (3, 2, 6) if use == "part of its inputs" else (6, 6)
    reason = "the function returns it" if use == "returned" else PLACE
    described = f"a.weight ({shape} float32): {reason}"
    with pytest.warns(DenseWeightWarning, match=dense_warning(described)):
        assert difference(DENSE[use], PLAIN, ROTATED, normal(4, 6), how="auto") < 2e-6
    assert made_dense == [1]
    assert difference(DENSE[use], PLAIN, ROTATED, normal(4, 6), how="dense") < 2e-6
    with pytest.raises(UnsupportedError, match=dense_refusal(described)):
        difference(DENSE[use], PLAIN, ROTATED, normal(4, 6))


# ---------------------------------------------------------------- layers in one leaf

STACK = {"layers": {"fc": {"kernel": normal(4, 6, 6), "bias": normal(4, 6)}}}
LAYERS = Layout(
    "stack",
    (
        Rule(r"layers\.(\d+)\.fc", "layers.fc.kernel", "i o -> o i", r"\1"),
        Rule(r"layers\.(\d+)\.fc", "layers.fc.bias", None, r"\1", "bias"),
    ),
)
# Ranks and kinds differ by layer, and one layer has only a rotation.
LAYER_MIX = jaxmix.mix(
    Adapter({f"layers.{i}.fc": lora(6, 6, rank=i) for i in (1, 2, 3)}, name="a"),
    Adapter({"layers.0.fc": oft(6), "layers.3.fc": dora(6, 6)}, name="b"),
    Adapter({"layers.2.fc": loha(6, 6), "layers.3.fc": loha(6, 6, 1)}, name="c"),
)
ADDITIVE_LAYER_MIX = jaxmix.mix(LAYER_MIX.parts[0], LAYER_MIX.parts[2])


def layer(x: Any, params: Any) -> tuple[Any, None]:
    return jnp.tanh(x @ params["kernel"] + params["bias"][None]), None


def layer_params(params: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], params["layers"]["fc"])


def scanned(params: Any, x: Any, body: Any = layer) -> Any:
    return jax.lax.scan(body, x, params["layers"]["fc"])[0]


def unrolled(params: Any, x: Any) -> Any:
    for i in range(4):
        x, _ = layer(x, layer_params(params, i))
    return x


def scanned_twice(params: Any, x: Any) -> Any:
    """Runs the layers twice; the first scan returns them as outputs, as Flax's scans do."""

    def body(x: Any, fc: Any) -> Any:
        return jax.checkpoint(lambda fc, x: (layer(x, fc)[0], fc))(fc, x)

    x, fc = jax.lax.scan(body, x, params["layers"]["fc"])
    return scanned({"layers": {"fc": fc}}, x)


LAYERWISE: dict[str, Run] = {
    "scan": scanned,
    "scan of remat": partial(scanned, body=jax.checkpoint(layer)),
    "a loop in Python": unrolled,
    "a loop in the program": lambda p, x: jax.lax.fori_loop(
        0, 4, lambda i, x: layer(x, layer_params(p, i))[0], x
    ),
    "its gradient by x": lambda p, x: jax.grad(lambda x: scanned(p, x).sum())(x),
    "looked up in a scan": lambda p, x: jax.lax.scan(
        lambda c, i: layer(c, jax.tree.map(lambda leaf: leaf.take(i, 0), p["layers"]["fc"])),
        x,
        jnp.arange(4),
    )[0],
    "looked up for each token": lambda p, x: jnp.einsum(
        "bi,bio->bo", x, p["layers"]["fc"]["kernel"][jnp.array([3, 0, 1, 3])]
    ),
    "scanned in parts": lambda p, x: jax.lax.map(
        lambda part: part @ x.T, p["layers"]["fc"]["kernel"].swapaxes(1, 2)
    ),
    "returned by scan": scanned_twice,
    "carried by scan": lambda p, x: jax.lax.scan(
        lambda c, i: ((c[0], layer(c[1], layer_params(c[0], i))[0]), None), (p, x), jnp.arange(4)
    )[0][1],
    "carried by while": lambda p, x: jax.lax.while_loop(
        lambda c: c[0] < 4,
        lambda c: (c[0] + 1, c[1], layer(c[2], layer_params(c[1], c[0]))[0]),
        (0, p, x),
    )[2],
    "returned by cond": lambda p, x: unrolled(
        *jax.lax.cond(x[0, 0] > 0, lambda p, x: (p, x), lambda p, x: (p, -x), p, x)
    ),
    "each with its tokens": lambda p, x: jnp.einsum(
        "lbi,lio->lbo", jnp.stack([x, -x, 2 * x, x]), p["layers"]["fc"]["kernel"]
    ),
}


@pytest.mark.one_of(2)
@pytest.mark.parametrize("use", LAYERWISE)
def test_layers_stay_factored(use: str, made_dense: list[int]) -> None:
    assert difference(LAYERWISE[use], STACK, LAYER_MIX, normal(4, 6), LAYERS) < 1e-5
    assert made_dense == [0]


def test_layers_outside_the_stack_are_nan_unless_clipped() -> None:
    """`jnp.take` does the same; a lookup that clips gives the last layer."""
    leaves = jaxmix.attach(STACK, ADDITIVE_LAYER_MIX, layout=LAYERS)

    def run(mode: str) -> Any:
        def fn(p: Any, x: Any) -> Any:
            return x @ jnp.take(p["layers"]["fc"]["kernel"], 9, axis=0, mode=mode)

        return jaxmix.factored(fn, "factored")(leaves, jnp.ones((2, 6)))

    last = jaxmix.compose(STACK, ADDITIVE_LAYER_MIX, layout=LAYERS)["layers"]["fc"]["kernel"][3]
    assert jnp.isnan(run("fill")).all()
    np.testing.assert_allclose(run("clip"), jnp.ones((2, 6)) @ last, rtol=1e-5)


def test_layers_that_share_tokens_stay_factored_without_rotations(made_dense: list[int]) -> None:
    """A rotation per layer needs the dense weights."""

    def run(params: Any, x: Any) -> Any:
        return jnp.einsum("bi,lio->lbo", x, params["layers"]["fc"]["kernel"])

    assert difference(run, STACK, ADDITIVE_LAYER_MIX, normal(4, 6), LAYERS) < 2e-6
    assert made_dense == [0]
    message = dense_warning(f"layers.fc.kernel ((4, 6, 6) float32): {PLACE}")
    with pytest.warns(DenseWeightWarning, match=message):
        assert difference(run, STACK, LAYER_MIX, normal(4, 6), LAYERS, "auto") < 2e-6
    assert made_dense == [1]


def test_heads_and_layers_in_one_leaf_stay_factored(made_dense: list[int]) -> None:
    """In MaxText the layers are the second axis, which the scan moves to the front."""
    params = {"q": normal(6, 4, 2, 3), "o": normal(2, 4, 3, 6)}
    rules = (
        Rule(r"l\.(\d+)\.q", "q", "d n h -> (n h) d", r":, \1"),
        Rule(r"l\.(\d+)\.o", "o", "n h d -> d (n h)", r":, \1"),
    )
    mixed = jaxmix.mix(
        Adapter({f"l.{i}.{m}": lora(6, 6, 2 + i % 2) for i in range(4) for m in "qo"}, name="a"),
        Adapter({f"l.{i}.{m}": oft(6) for i in range(3) for m in "qo"}, name="b"),
    )

    def body(x: Any, weights: Any) -> tuple[Any, None]:
        heads = jnp.einsum("bd,dnh->bnh", x, weights["q"])
        return jnp.tanh(jnp.einsum("bnh,nhd->bd", heads, weights["o"])), None

    def run(params: Any, x: Any) -> Any:
        moved = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), params)
        return jax.lax.scan(body, x, moved)[0]

    def unrolled(params: Any, x: Any) -> Any:
        for i in range(4):
            x, _ = body(x, jax.tree.map(lambda leaf, i=i: leaf[:, i], params))
        return x

    for model in (run, unrolled):
        assert difference(model, params, mixed, normal(4, 6), Layout("heads", rules)) < 1e-5
    assert made_dense == [0]


# ---------------------------------------------------------------- convolutions, tokens, experts


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_stays_factored(groups: int, made_dense: list[int]) -> None:
    """Strides, Flax's axis order and groups are supported."""
    params = {"c": {"kernel": normal(3, 2, 4, 6)}}
    mixed = jaxmix.mix(
        adapter("a", c=lora(24, 6)), adapter("b", c=dora(24, 6)), adapter("c", c=loha(24, 6))
    )

    def run(params: Any, x: Any) -> Any:
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            params["c"]["kernel"],
            (2, 1),
            "SAME",
            dimension_numbers=axes,
            feature_group_count=groups,
        )

    assert difference(run, params, mixed, normal(2, 7, 7, 4 * groups)) < 2e-6
    assert made_dense == [0]


TOKENS = jnp.array([[1, 2, 9], [0, 3, 3]])
LOOKED_UP: dict[str, Run] = {
    "take": lambda p, t: jnp.take(p["e.weight"], t, axis=0),
    "an index": lambda p, t: p["e.weight"][t],
    "columns": lambda p, t: jnp.take(p["e.weight"].T, t, axis=1),
    "one-hot": lambda p, t: jax.nn.one_hot(t, 10) @ p["e.weight"],
    "as a head": lambda p, t: jax.nn.one_hot(t, 4) @ p["e.weight"].T,
}


@pytest.mark.parametrize("use", LOOKED_UP)
def test_embedding_stays_factored(use: str, made_dense: list[int]) -> None:
    def table(**options: Any) -> LoRA:
        return LoRA(normal(2, 4), normal(10, 2), 0.5, embedding=True, **options)

    mixed = jaxmix.mix(
        adapter("a", e=table()),
        adapter("b", e=table(magnitude=1 + abs(normal(4)))),
        adapter("c", e=OFT(0.3 * normal(2, 1), embedding=True)),
        adapter("d", e=loha(4, 10)),
    )
    assert difference(LOOKED_UP[use], {"e.weight": normal(10, 4)}, mixed, TOKENS) < 2e-6
    assert made_dense == [0]


def test_token_out_of_range_gives_nan() -> None:
    """The result is NaN without adapters too."""
    leaves = jaxmix.attach({"e.weight": normal(10, 4)}, adapter("a", e=lora(4, 10)))
    run = jaxmix.factored(lambda p, t: jnp.take(p["e.weight"], t, axis=0, mode="fill"))
    assert jnp.isnan(run(leaves, jnp.array([12]))).all()


@pytest.mark.parametrize("spec", ["ecd,efd->ecf", "cd,efd->ecf", "ecf,efd->ecd"])
def test_experts_stay_factored(spec: str, made_dense: list[int]) -> None:
    def expert_lora(r: int) -> ExpertLoRA:
        return ExpertLoRA(normal(3, r, 5), normal(3, 4, r), 0.5)

    mixed = jaxmix.mix(adapter("a", ex=expert_lora(2)), adapter("b", ex=expert_lora(3)))
    shape = [{"e": 3, "c": 7, "d": 5, "f": 4}[axis] for axis in spec.split(",")[0]]

    def run(params: Any, x: Any) -> Any:
        return jnp.einsum(spec, x, params["ex"])

    assert difference(run, {"ex": normal(3, 4, 5)}, mixed, normal(*shape)) < 2e-6
    assert made_dense == [0]


# ---------------------------------------------------------------- libraries


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.e = nnx.Embed(10, 6, rngs=rngs)
        self.a = nnx.Linear(6, 8, rngs=rngs)
        self.b = nnx.LinearGeneral(8, (2, 3), rngs=rngs)
        self.c = nnx.Conv(6, 5, (3,), rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.e(tokens)
        return self.b(jnp.tanh(self.a(x))), self.c(x)


@pytest.fixture
def rank_promotion_allowed() -> Any:
    """Allows rank promotion, since Flax's layers broadcast their biases."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_nnx_modules_stay_factored(made_dense: list[int], rank_promotion_allowed: None) -> None:
    """The module may be an argument itself, or be split and merged."""
    mixed = jaxmix.mix(
        adapter("x", a=lora(6, 8), e=LoRA(normal(2, 6), normal(10, 2), 0.5), c=lora(18, 5)),
        adapter("y", a=dora(6, 8)),
    )
    net = Net(nnx.Rngs(0))
    assert difference(lambda net, t: net(t), net, mixed, TOKENS) < 2e-6
    graph, state = nnx.split(net)
    assert difference(lambda s, t: nnx.merge(graph, s)(t), state, mixed, TOKENS) < 2e-6
    assert made_dense == [0]


def test_linen_modules_stay_factored(made_dense: list[int], rank_promotion_allowed: None) -> None:
    net = nn.Sequential([nn.Dense(8), nn.tanh, nn.DenseGeneral((2, 3))])
    params = net.init(jax.random.key(0), jnp.ones((2, 6)))
    rules = (Rule(r"up", "params.layers_0.kernel", "i o -> o i"),)
    mixed = jaxmix.mix(adapter("x", up=lora(6, 8)), adapter("y", up=oft(6)))
    assert difference(net.apply, params, mixed, normal(4, 6), Layout("linen", rules)) < 2e-6
    assert made_dense == [0]


def test_equinox_modules_stay_factored(made_dense: list[int]) -> None:
    net = eqx.nn.MLP(6, 6, 6, 2, key=jax.random.key(0))
    mixed = jaxmix.mix(adapter("x", layers_0=lora(6, 6)), adapter("y", layers_1=oft(6)))
    assert difference(lambda net, x: jax.vmap(net)(x), net, mixed, normal(4, 6)) < 2e-6
    assert made_dense == [0]
