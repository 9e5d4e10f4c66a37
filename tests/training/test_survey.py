"""`jaxmix.init` on other trees than flat PyTorch dicts: stacked layers, heads, cells, adapters."""

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmix
from jaxmix.errors import LayoutError, UnsupportedError
from jaxmix.placement.tree import Tree

from ..messages import full_text
from ..uncompiled import uncompiled

L, D, N, H, F, V = 3, 10, 2, 3, 6, 11
_KEY = jax.random.key(0)
LAYERS = [
    f"layers.{i}.{name}"
    for i in range(L)
    for name in ("attn.query", "attn.key", "attn.value", "attn.out", "up", "down")
]


class Block(nnx.Module):
    """Attention with axes for heads, a norm and an MLP."""

    def __init__(self, rngs: nnx.Rngs, use_bias: bool = True) -> None:
        self.norm = nnx.LayerNorm(D, rngs=rngs)
        how: dict[str, Any] = {"use_bias": use_bias, "rngs": rngs}
        self.attn = nnx.MultiHeadAttention(N, D, qkv_features=N * H, decode=False, **how)
        self.up, self.down = nnx.Linear(D, F, **how), nnx.Linear(F, D, **how)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies one layer."""
        x = x + self.attn(self.norm(x))
        return x + self.down(jnp.tanh(self.up(x)))


class Net(nnx.Module):
    """Layers stacked along an axis, between an embedding and a head."""

    def __init__(self, rngs: nnx.Rngs, axis: int = 0, use_bias: bool = True) -> None:
        axes = nnx.StateAxes({nnx.Param: axis, ...: 0})

        @nnx.split_rngs(splits=L)
        @nnx.vmap(in_axes=(nnx.StateAxes({...: 0}),), out_axes=axes)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(rngs, use_bias)

        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.position = nnx.Param(jnp.ones((4, D)))
        self.layers = blocks(rngs)
        self.norm = nnx.RMSNorm(D, rngs=rngs)
        self.head = nnx.Linear(D, V, use_bias=False, rngs=rngs)
        self.axes = axes

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits."""

        @nnx.scan(in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)
        def run(block: Block, x: jax.Array) -> jax.Array:
            return block(x)

        x = self.embed(tokens) + self.position[...][None, : tokens.shape[-1]]
        return self.head(self.norm(run(self.layers, x)))


@cache
def net(**options: Any) -> Net:
    """Returns a model, the same one for equal options; no test changes it."""
    return Net(nnx.Rngs(0), **options)


def pure_dict(module: nnx.Module) -> Any:
    """Returns the module's parameters as a pure dict."""
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


FORMS: dict[str, Callable[[Net], Any]] = {
    "module": lambda module: module,
    "state": lambda module: nnx.state(module, nnx.Param),
    "pure": pure_dict,
    "linen": lambda module: {"params": pure_dict(module)},
}
# How one layer's slice becomes PyTorch's (out, in).
AXES = {
    "query": lambda w: w.reshape(D, N * H).T,
    "key": lambda w: w.reshape(D, N * H).T,
    "value": lambda w: w.reshape(D, N * H).T,
    "out": lambda w: w.reshape(N * H, D).T,
    "up": lambda w: w.T,
    "down": lambda w: w.T,
}


def leaves(tree: Any) -> dict[str, np.ndarray]:
    """Returns a tree's leaves by name."""
    flat_tree = Tree.of(tree)
    return {
        name.removeprefix("params."): np.asarray(flat_tree.leaves[i])
        for name, i in flat_tree.positions.items()
        if jnp.issubdtype(flat_tree.leaves[i].dtype, jnp.floating)
    }


def with_nonzero_factors(adapter: jaxmix.Adapter) -> Any:
    """Returns the adapter with all matrices shifted, so that no factor is zero."""
    return jax.tree.map(lambda x: x + 0.3 if getattr(x, "ndim", 0) == 2 else x, adapter)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_each_stacked_layer_is_targeted(form: str, axis: int) -> None:
    """The linear maps of each layer are sites, in the module and in trees without classes."""
    params = FORMS[form](net(axis=axis))
    initialized = jaxmix.init("lora", params, _KEY, target_modules="all-linear", rank=2)
    assert set(initialized.sites) == set(LAYERS)
    adapter = with_nonzero_factors(initialized)
    with uncompiled():
        merged = leaves(jaxmix.compose(params, adapter))
    before = leaves(params)
    for site in LAYERS:
        _, number, rest = site.split(".", 2)
        name = f"layers.{rest}.kernel"
        update: Any = adapter.updates[site]
        delta = np.take(merged[name] - before[name], int(number), axis)
        expected = update.scale * np.asarray(update.b) @ np.asarray(update.a)
        np.testing.assert_allclose(AXES[rest.rpartition(".")[2]](delta), expected, atol=1e-5)
    changed = {f"layers.{site.split('.', 2)[2]}.kernel" for site in LAYERS}
    assert {name for name in before if (before[name] != merged[name]).any()} == changed


def test_target_names_apply_to_stacked_layers() -> None:
    """Suffixes, excludes and layer numbers apply to the layers of a stack."""

    def sites(**options: Any) -> set[str]:
        return set(jaxmix.init("lora", pure_dict(net()), _KEY, rank=1, **options).sites)

    assert sites(target_modules=["query", "up"]) == {
        site for site in LAYERS if site.endswith(("query", "up"))
    }
    layers = {"layers_to_transform": [1], "layers_pattern": "layers"}
    assert sites(target_modules=["out"], **layers) == {"layers.1.attn.out"}
    assert sites(target_modules=r"layers\.2\.(up|down)") == {"layers.2.up", "layers.2.down"}
    assert sites(target_modules="all-linear", exclude_modules=["attn.out", "down"]) == {
        site for site in LAYERS if not site.endswith(("out", "down"))
    }
    assert sites(target_modules=["layers.up"]) == {f"layers.{i}.up" for i in range(L)}


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.thorough), "oft"])
def test_every_layer_of_a_stack_is_trained(kind: str) -> None:
    """A new adapter does not change the outputs, and has a gradient at each site."""
    model = net()
    tokens = jnp.arange(4)[None]
    adapter = jaxmix.init(kind, model, _KEY, target_modules="all-linear")
    np.testing.assert_allclose(jaxmix.compose(model, adapter)(tokens), model(tokens), atol=1e-5)
    values, rebuild = jaxmix.trainable(adapter if kind == "oft" else with_nonzero_factors(adapter))

    def loss(values: Any) -> jax.Array:
        return jnp.sum(jaxmix.compose(model, rebuild(values))(tokens)[..., 0] ** 2)

    gradients = rebuild(jax.jit(jax.grad(loss))(values))
    for site, update in gradients.updates.items():
        assert any(np.abs(np.asarray(x)).max() > 0 for x in jax.tree.leaves(update)), site


def test_factored_stacks_match_the_merged_model() -> None:
    """Factored leaves of stacked layers and heads give the merged model's outputs and gradients."""
    params = pure_dict(net())
    x = jax.random.normal(_KEY, (4, D))

    def forward(params: Any) -> jax.Array:
        def layer(x: jax.Array, block: Any) -> tuple[jax.Array, None]:
            attn = block["attn"]
            q, k, v = (
                jnp.einsum("td,dnh->tnh", x, attn[name]["kernel"]) + attn[name]["bias"][None]
                for name in ("query", "key", "value")
            )
            x = x + jnp.einsum("tnh,nhd->td", jnp.tanh(q * k * v), attn["out"]["kernel"])
            return x + jnp.tanh(x @ block["up"]["kernel"]) @ block["down"]["kernel"], None

        return jnp.sum(jax.lax.scan(layer, x, params["layers"])[0] ** 2)

    adapter = (
        with_nonzero_factors(jaxmix.init("lora", params, _KEY, target_modules="all-linear", rank=2))
        * 0.1
    )
    values, rebuild = jaxmix.trainable(adapter)
    unmerged = jax.jit(
        jax.value_and_grad(lambda v: jaxmix.factored(forward)(jaxmix.attach(params, rebuild(v))))
    )(values)
    merged = jax.jit(jax.value_and_grad(lambda v: forward(jaxmix.compose(params, rebuild(v)))))(
        values
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), unmerged, merged
    )


# ------------------------------------------------------------------------------ other libraries


class Eqx(eqx.Module):
    """A stacked MLP and stacked attention among other kinds of layers."""

    embedding: eqx.nn.Embedding
    layers: eqx.nn.MLP
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    gru: eqx.nn.GRUCell
    conv: eqx.nn.Conv1d
    lm_head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, L)
        self.embedding = eqx.nn.Embedding(V, D, key=key)
        self.layers = eqx.filter_vmap(lambda k: eqx.nn.MLP(D, D, F, 1, use_bias=False, key=k))(keys)
        self.attention = eqx.filter_vmap(lambda k: eqx.nn.MultiheadAttention(N, D, key=k))(keys)
        self.norm = eqx.nn.LayerNorm((D, V))
        self.gru = eqx.nn.GRUCell(D, F, key=key)
        self.conv = eqx.nn.Conv1d(D, F, 3, use_bias=False, key=key)
        self.lm_head = eqx.nn.Linear(D, V, key=key)


def test_equinox_modules_stacked_by_filter_vmap() -> None:
    """Layers are identified by their classes, without biases or norms."""
    model = Eqx(_KEY)
    initialized = jaxmix.init("lora", model, _KEY, target_modules="all-linear", rank=2)
    names = [f"layers.{i}.layers.{j}" for i in range(L) for j in range(2)]
    names += [
        f"attention.{i}.{x}_proj" for i in range(L) for x in ("query", "key", "value", "output")
    ]
    assert set(initialized.sites) == set(names)
    adapter = with_nonzero_factors(initialized)
    merged = jaxmix.compose(model, adapter)
    update: Any = adapter.updates["layers.1.layers.0"]
    delta = merged.layers.layers[0].weight[1] - model.layers.layers[0].weight[1]
    np.testing.assert_allclose(delta, update.scale * update.b @ update.a, atol=1e-5)
    outputs = eqx.filter_vmap(lambda mlp: mlp(jnp.ones(D)))
    assert (outputs(merged.layers) != outputs(model.layers)).all()


class LinenBlock(nn.Module):
    """A layer of Linen."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        """Applies one layer."""
        x = x + nn.MultiHeadDotProductAttention(N, qkv_features=N * H)(nn.LayerNorm()(x))
        return x + nn.Dense(D)(nn.Dense(F)(x)), None


class Linen(nn.Module):
    """Scanned layers, a cell and a convolution."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Returns logits."""
        x = nn.Embed(V, D)(tokens) + self.param("pos_embedding", nn.initializers.ones, (4, D))
        how: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(LinenBlock, length=L, **how)(name="layers")(x, None)
        x = nn.Conv(D, (3,))(nn.RNN(nn.OptimizedLSTMCell(D))(x[None]))
        return nn.Dense(V, name="lm_head")(x)


def test_linen_scan_and_cells() -> None:
    """In a pure dict, biases and norms identify the layers, and names identify gates of cells."""
    params = jax.eval_shape(Linen().init, _KEY, jnp.arange(4))
    adapter = jaxmix.init("lora", params, _KEY, target_modules="all-linear", rank=1)
    attn = "MultiHeadDotProductAttention_0"
    names = [f"{attn}.{x}" for x in ("query", "key", "value", "out")] + ["Dense_0", "Dense_1"]
    assert set(adapter.sites) == {f"layers.{i}.{name}" for i in range(L) for name in names}


class OtherLayers(nnx.Module):
    """Layers that are not linear, and two that are."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lstm = nnx.LSTMCell(D, F, rngs=rngs)
        self.gru = nnx.GRUCell(D, F, rngs=rngs)
        self.conv = nnx.Conv(D, F, (3,), use_bias=False, rngs=rngs)
        self.inside = nnx.LoRALinear(D, F, lora_rank=2, rngs=rngs)
        linear = nnx.LinearGeneral(D, (N, H), use_bias=False, rngs=rngs)
        self.around = nnx.LoRA(D, 2, N * H, base_module=linear, rngs=rngs)
        self.einsum = nnx.Einsum("abc,cde->abde", (D, N, H), rngs=rngs)


def test_only_linear_layers_are_targeted() -> None:
    """Cells, convolutions and LoRA's own factors are not targeted; a layer that LoRA wraps is."""
    model = OtherLayers(nnx.Rngs(0))
    adapter = jaxmix.init("lora", model, _KEY, target_modules="all-linear", rank=1)
    sizes = {s: (u.b.shape[0], u.a.shape[1]) for s, u in dict[str, Any](adapter.updates).items()}
    assert sizes == {"inside": (F, D), "around": (N * H, D), "einsum": (N * H, D)}
    out = jaxmix.compose(model, with_nonzero_factors(adapter))
    update: Any = with_nonzero_factors(adapter).updates["einsum"]
    delta = out.einsum.kernel[...] - model.einsum.kernel[...]
    expected = (update.scale * update.b @ update.a).T.reshape(D, N, H)
    np.testing.assert_allclose(delta, expected, atol=1e-5)


TREES: dict[str, tuple[dict[str, tuple[int, ...]], list[str]]] = {
    "norm": (
        {"norm.scale": (L, D), "q.kernel": (L, D, F), "q.bias": (L, F)},
        ["0.q", "1.q", "2.q"],
    ),
    "bias": ({"q.kernel": (D, N, H), "q.bias": (N, H)}, ["q"]),
    "t5": ({"t.relative_attention_bias.weight": (8, N), "t.q.weight": (F, D)}, ["t.q"]),
    "peft": (
        {"q.base_layer.weight": (F, D), "q.lora_A.default.weight": (2, D)},
        ["q.base_layer"],
    ),
    "names": ({"pos_embed.kernel": (4, D), "ln_1.weight": (4, D), "q.kernel": (D, F)}, ["q"]),
    "conv": (
        {"conv.kernel": (3, 3, D, F), "stem.conv1.kernel": (3, D, F), "q.w": (D, F)},
        ["q"],
    ),
    "plural": (
        {"layers.up.kernel": (L, D, F), "layers.down.kernel": (L, F, D)},
        [f"layers.{i}.{name}" for i in range(L) for name in ("up", "down")],
    ),
    "single": (
        {"up.kernel": (L, D, F), "up.bias": (L, F), "q.kernel": (D, F), "q.bias": (F,)},
        ["q", "up.0", "up.1", "up.2"],
    ),
    "head": (
        {"token.embedding": (V, D), "head.kernel": (D, V), "score.kernel": (D, 3)},
        ["score"],
    ),
}


@pytest.mark.parametrize(("shapes", "linear"), TREES.values(), ids=TREES)
def test_linear_layers_by_name_and_shape(
    shapes: dict[str, tuple[int, ...]], linear: list[str]
) -> None:
    """In trees without classes, exactly the linear layers are targeted."""
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    adapter = jaxmix.init("lora", params, _KEY, target_modules="all-linear", rank=1)
    assert sorted(adapter.sites) == sorted(linear)
    with uncompiled():
        jaxmix.compose(params, adapter)


def test_ambiguous_leaves_are_listed() -> None:
    """All ambiguous leaves are listed with the remedy; excluded leaves are not."""
    params = {
        "proj": {"kernel": jnp.ones((D, N, H))},
        "mix_einsum": jnp.ones((2, D, F)),
        "q": {"kernel": jnp.ones((D, F))},
    }
    message = (
        "weights that may be linear layers, but neither names, classes nor biases show which of "
        "their axes are inputs, outputs or layers:\n  mix_einsum: (2, 10, 6)\n  proj: (10, 2, 3)\n"
        "Pass the nnx or Equinox module itself, pass layout=jaxmix.Layout(…) with a rule for each "
        "(layout='flax' for convolutions), or leave them out with exclude_modules."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        jaxmix.init("lora", params, _KEY, target_modules="all-linear")
    with pytest.raises(
        LayoutError,
        match=full_text(
            "weights that may be linear layers, but neither names, "
            "classes nor biases show which of their axes are inputs, "
            "outputs or layers:\n"
            "  proj: (10, 2, 3)\n"
            "Pass the nnx or Equinox module itself, pass "
            "layout=jaxmix.Layout(…) with a rule for each (layout='flax' "
            "for convolutions), or leave them out with exclude_modules."
        ),
    ):
        jaxmix.init("lora", params, _KEY, target_modules=["proj", "q"])
    exclusion = {"exclude_modules": ["proj", "mix_einsum"]}
    assert jaxmix.init("lora", params, _KEY, target_modules="all-linear", **exclusion).sites == (
        "q",
    )
    rule = jaxmix.Rule("proj", "proj.kernel", "d n h -> (n h) d")
    layout = jaxmix.Layout("own", (rule,))
    adapter = jaxmix.init("lora", params, _KEY, target_modules=["proj"], layout=layout)
    assert adapter.sites == ("proj",)
    conv = jaxmix.init("lora", params, _KEY, target_modules=["q"], layout="flax")
    assert conv.sites == ("q",)


def test_stacked_norm_is_refused_by_name() -> None:
    """A stacked norm is recognised as a norm, not as a matrix (layers, width)."""
    with pytest.raises(
        UnsupportedError,
        match=full_text(
            "lora supports only linear, conv1d, convolution, embedding, "
            "parameter modules, but the targets include:\n"
            "  layers.0.norm: norm of shape (10,)\n"
            "  layers.1.norm: norm of shape (10,)\n"
            "  layers.2.norm: norm of shape (10,)\n"
            "Name others, or leave these out with exclude_modules."
        ),
    ):
        jaxmix.init("lora", net(), _KEY, target_modules=["layers.norm"])
    adapter = jaxmix.init(
        "lora", net(), _KEY, target_modules=["up"], modules_to_save=["layers.norm"]
    )
    replaced: Any = adapter.updates["layers.1.norm"]
    assert replaced.weight.shape == (D,)
