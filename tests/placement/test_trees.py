"""Adapters have the same effect on every kind of tree."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxmix
from jaxmix import Adapter
from jaxmix.errors import LayoutError, ShapeError
from jaxmix.families import OFT, AdaLoRA, LoRA, Replace, Together

from ..laws.draws import FAMILIES, KINDS, Module, draw_update, normal, ones, tree, zeros
from ..laws.truth import fold, fold_tree
from ..messages import full_text
from ..uncompiled import uncompiled

Flat = dict[str, Any]

MODULES = {
    "embed": KINDS["embedding"],
    "layers.0": KINDS["wide"],
    "layers.1": KINDS["tall"],
    "layers.2": KINDS["square"],
    "conv1d": KINDS["conv1d"],
    "conv2d": KINDS["conv2d"],
    "conv3d": KINDS["conv3d"],
    "norm": KINDS["norm"],
}
BASE = tree(MODULES, 0)
ADAPTERS = [
    Adapter(
        {
            site: draw_update(kind, module, 7 * i + j)
            for j, (site, module) in enumerate(MODULES.items())
        }
    )
    * (0.5 + 0.3 * i)
    for i, kind in enumerate((*FAMILIES, "DoRA", "Replace", "Together"))
]
ADAPTERS = [a.renamed(str(i)) for i, a in enumerate(ADAPTERS)]


# ---------------------------------------------------------------- the same weights in other trees


def kernel(weight: np.ndarray) -> np.ndarray:
    """Transposes PyTorch's (out, in, *k) to Flax's (*k, in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def flax_leaves(flat: Mapping[str, Any]) -> Flat:
    """Returns the leaves with Flax's names and orientation."""
    out: Flat = {}
    for name, leaf in flat.items():
        module, _, part = name.rpartition(".")
        kind = MODULES[module].kind
        if part == "bias":
            out[name] = leaf
        elif kind == "embedding":
            out[f"{module}.embedding"] = leaf
        elif kind == "norm":
            out[f"{module}.scale"] = leaf
        else:
            out[f"{module}.kernel"] = kernel(np.asarray(leaf))
    return out


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a dict of dicts."""
    return unflatten_dict(dict(flat), sep=".")


class Linen:
    """Params nested below Linen's ``params``, next to another collection."""

    @staticmethod
    def make(flat: Flat) -> Any:
        return {"params": nested(flax_leaves(flat)), "batch_stats": {"mean": zeros(3)}}

    @staticmethod
    def read(params: Any) -> Flat:
        return flatten_dict(params["params"], sep=".")


class Net(nnx.Module):
    """All kinds of NNX layers, with state of other kinds."""

    def __init__(self, rngs: nnx.Rngs):
        how: dict[str, Any] = {"rngs": rngs, "param_dtype": jnp.float64}
        self.embed = nnx.Embed(10, 4, **how)
        self.layers = nnx.List(
            [nnx.Linear(i, o, use_bias=b, **how) for i, o, b in ((8, 6, 1), (4, 8, 0), (6, 6, 1))]
        )
        self.conv1d = nnx.Conv(6, 4, (3,), **how)
        self.conv2d = nnx.Conv(4, 6, (3, 2), use_bias=False, **how)
        self.conv3d = nnx.Conv(2, 4, (1, 2, 3), **how)
        self.norm = nnx.LayerNorm(5, **how)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def nnx_module(flat: Flat) -> Net:
    """Returns a module with these weights."""
    net = Net(nnx.Rngs(0))
    for name, leaf in flax_leaves(flat).items():
        node: Any = net
        for part in name.split("."):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        assert node[...].shape == leaf.shape
        node[...] = jnp.asarray(leaf)
    return net


def of_nnx(params: Any) -> Flat:
    """Returns the names and arrays of a module's parameters."""
    state = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    pure = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    flat = {".".join(map(str, path)): leaf for path, leaf in flatten_dict(pure).items()}
    return {name: leaf for name, leaf in flat.items() if not name.startswith("dropout")}


class Equinox(eqx.Module):
    """The same layers in Equinox; convolution biases are (out, 1, …)."""

    embed: eqx.nn.Embedding
    layers: list[eqx.nn.Linear]
    conv1d: eqx.nn.Conv
    conv2d: eqx.nn.Conv
    conv3d: eqx.nn.Conv
    norm: eqx.nn.LayerNorm
    activation: Callable[[Any], Any] = jax.nn.relu

    def __init__(self, key: Any):
        how: dict[str, Any] = {"key": key, "dtype": jnp.float64}
        self.embed = eqx.nn.Embedding(10, 4, **how)
        self.layers = [
            eqx.nn.Linear(i, o, use_bias=b, **how)
            for i, o, b in ((8, 6, True), (4, 8, False), (6, 6, True))
        ]
        self.conv1d = eqx.nn.Conv(1, 6, 4, 3, **how)
        self.conv2d = eqx.nn.Conv(2, 4, 6, (3, 2), use_bias=False, **how)
        self.conv3d = eqx.nn.Conv(3, 2, 4, (1, 2, 3), **how)
        self.norm = eqx.nn.LayerNorm(5, dtype=jnp.float64)


def in_equinox(net: Equinox, name: str) -> Any:
    """Returns a leaf by name."""
    node: Any = net
    for part in name.split("."):
        node = node[int(part)] if part.isdigit() else getattr(node, part)
    return node


def equinox_module(flat: Flat) -> Equinox:
    """Returns a module with these weights."""
    net = Equinox(jax.random.key(0))
    names = list(flat)
    leaves = [jnp.asarray(flat[n]).reshape(in_equinox(net, n).shape) for n in names]
    return eqx.tree_at(lambda net: [in_equinox(net, n) for n in names], net, leaves)


class Hooks:
    """How to make a tree of the flat dict and read it, and whether it has Flax's names."""

    def __init__(self, make: Callable[[Flat], Any], read: Callable[[Any], Flat], flax: bool):
        self.make, self.read, self.flax = make, read, flax


def state_of(flat: Flat) -> Any:
    """Returns the module's ``nnx.State`` with all kinds of variables."""
    return nnx.state(nnx_module(flat))


def mixed_leaves(flat: Flat) -> Any:
    """Returns leaves of JAX and NumPy in turn."""
    return {n: jnp.asarray(x) if i % 2 else x for i, (n, x) in enumerate(flat.items())}


TREES = {
    "flat, NumPy": Hooks(dict, dict, False),
    "flat, JAX": Hooks(lambda flat: jax.tree.map(jnp.asarray, flat), dict, False),
    "flat, both": Hooks(mixed_leaves, dict, False),
    "nested, PyTorch": Hooks(nested, lambda p: flatten_dict(p, sep="."), False),
    "nested, Flax": Hooks(
        lambda flat: nested(flax_leaves(flat)), lambda p: flatten_dict(p, sep="."), True
    ),
    "flat, Flax": Hooks(flax_leaves, dict, True),
    "Linen": Hooks(Linen.make, Linen.read, True),
    "FrozenDict": Hooks(
        lambda flat: FrozenDict(Linen.make(flat)), lambda p: Linen.read(p.unfreeze()), True
    ),
    "nnx.Module": Hooks(nnx_module, of_nnx, True),
    "nnx.State": Hooks(state_of, of_nnx, True),
    "pure dict": Hooks(lambda flat: nnx.to_pure_dict(state_of(flat)), of_nnx, True),
    "Equinox": Hooks(
        equinox_module, lambda net: {n: np.asarray(in_equinox(net, n)) for n in BASE}, False
    ),
}


# One tree of each kind of names and containers gets six kinds, and two kinds compiled. The others,
# which are taken apart in the same way, get the other three; compiled they are thorough.
DIFFERENT = ("flat, NumPy", "nested, Flax", "nnx.Module", "Equinox")
RUNS = [
    pytest.param(
        name,
        compiled,
        id=f"{name}-{'compiled' if compiled else 'uncompiled'}",
        marks=pytest.mark.thorough if compiled and name not in DIFFERENT else [],
    )
    for name in TREES
    for compiled in (False, True)
]


@pytest.mark.parametrize(("name", "compiled"), RUNS)
def test_effects_are_equal_in_all_trees(name: str, compiled: bool) -> None:
    """The adapters at all modules have one effect in every tree."""
    hooks = TREES[name]
    names = "06" if compiled else "024678" if name in DIFFERENT else "135"
    adapters = [adapter for adapter in ADAPTERS if adapter.name in names]
    truth = fold_tree(BASE, adapters)
    with jax.enable_x64(True), uncompiled(apply=not compiled):
        params = hooks.make(BASE)
        before = {name: np.array(leaf) for name, leaf in hooks.read(params).items()}
        out = jaxmix.compose(params, adapters)
        merged = {name: np.asarray(leaf) for name, leaf in hooks.read(out).items()}
        after = {name: np.asarray(leaf) for name, leaf in hooks.read(params).items()}
    assert type(out) is type(params) and out is not params
    assert jax.tree.structure(out) == jax.tree.structure(params)
    expected = flax_leaves(truth) if hooks.flax else truth
    assert merged.keys() == expected.keys() == before.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(
            merged[name], leaf.reshape(merged[name].shape), rtol=1e-10, atol=1e-10
        )
        assert merged[name].dtype == before[name].dtype and merged[name].shape == before[name].shape
        assert (after[name] == before[name]).all(), "the argument was changed"


@pytest.mark.parametrize("hooks", TREES.values(), ids=TREES)
def test_untouched_leaves_are_the_same_objects(hooks: Hooks) -> None:
    """Untouched leaves, arrays or not, are the same objects in every tree."""
    with jax.enable_x64(True), uncompiled():
        params = hooks.make(BASE)
        adapter = Adapter({"layers.1": draw_update("LoRA", MODULES["layers.1"], 0)})
        out = jaxmix.compose(params, [adapter])
    pairs = zip(jax.tree.leaves(out), jax.tree.leaves(params), strict=True)
    assert sum(new is not old for new, old in pairs) == 1


def test_nnx_module_runs() -> None:
    """The result is a new module of the same class that computes with the new weights."""
    net = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    model = nnx.Sequential(net, nnx.relu)
    update = draw_update("LoRA", MODULES["layers.0"], 0)
    out: Any = jaxmix.compose(model, [Adapter({"layers.0": update})])
    assert net.bias is not None
    x = normal(np.random.default_rng(0), 2, 8).astype(np.float32)
    weight, bias = fold([(1.0, update)], np.asarray(net.kernel[...]).T, np.asarray(net.bias[...]))
    assert weight is not None and bias is not None
    assert isinstance(out, nnx.Sequential) and out.layers[1] is nnx.relu
    np.testing.assert_allclose(
        out(x), np.maximum(x @ weight.T + bias[None], 0), rtol=1e-4, atol=1e-5
    )
    layer: Any = out.layers[0]
    assert layer.kernel is not net.kernel
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(out, x), out(x), rtol=1e-5, atol=1e-5)


def test_metadata_of_nnx_variables_is_kept() -> None:
    """The variables' class and metadata, such as axis names, are kept."""
    net = nnx.Linear(8, 6, use_bias=False, rngs=nnx.Rngs(0))
    net.kernel = nnx.Param(net.kernel[...], names=("in", "out"))
    out = jaxmix.compose(
        {"a": net}, [Adapter({"a": draw_update("LoRA", Module("linear", (6, 8)), 0)})]
    )
    assert type(out["a"].kernel) is nnx.Param
    assert out["a"].kernel.get_metadata() == net.kernel.get_metadata()


def test_shared_nnx_variable_is_untied() -> None:
    """A variable used at two sites is two leaves; only the adapter's site changes."""
    first, second = (nnx.Linear(6, 6, use_bias=False, rngs=nnx.Rngs(i)) for i in range(2))
    second.kernel = first.kernel
    net = nnx.List([first, second])
    out = jaxmix.compose(net, [Adapter({"1": draw_update("LoRA", Module("linear", (6, 6)), 0)})])
    before = np.asarray(first.kernel[...])
    assert (np.asarray(out[0].kernel[...]) == before).all()
    assert (np.asarray(out[1].kernel[...]) != before).any()
    assert (np.asarray(second.kernel[...]) == before).all()


def test_attribute_called_value() -> None:
    """`value` next to siblings is an attribute's name, not a variable's value."""

    class Attention(eqx.Module):
        key: Any
        value: Any

    leaf = zeros((6, 8), np.float32)
    params = {"attn": Attention(leaf, leaf)}
    out = jaxmix.compose(params, [Adapter({"attn.value": Replace(ones((6, 8)))})])
    assert out["attn"].key is leaf and (np.asarray(out["attn"].value) == 1).all()


# ---------------------------------------------------------------- GPT-2 and its Conv1D


def gpt2(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns Conv1D layers (in, out) with biases, square and non-square, and linear layers."""
    out = {
        "h.0.attn.c_attn.weight": normal(rng, 6, 18),
        "h.0.attn.c_attn.bias": normal(rng, 18),
        "h.0.attn.c_proj.weight": normal(rng, 6, 6),
        "h.0.attn.c_proj.bias": normal(rng, 6),
        "h.0.mlp.c_proj.weight": normal(rng, 8, 6),
        "h.0.mlp.c_proj.bias": normal(rng, 6),
        "wte.weight": normal(rng, 10, 6),
        "score.weight": normal(rng, 4, 6),
        "score.bias": normal(rng, 4),
        "square.weight": normal(rng, 6, 6),
        "square.bias": normal(rng, 6),
        "other.square.weight": normal(rng, 8, 6),
        "other.square.bias": normal(rng, 8),
    }
    return out


GPT2 = gpt2(np.random.default_rng(0))
CONV1D = ("h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj")
LINEAR = ("score", "square", "other.square")


def flagged(site: str, kind: str, seed: int, flag: bool) -> Any:
    """Returns an update of GPT-2 as the reader makes it; the flag is that of the whole adapter."""
    shape = GPT2[f"{site}.weight"].shape
    module = Module("linear", shape[::-1] if site in CONV1D else shape, True)
    rng = np.random.default_rng(seed)
    if kind == "Replace":  # as PyTorch stores it
        return Replace(normal(rng, *shape), normal(rng, module.shape[0]))
    update: Any = draw_update(kind, module, seed)
    match update:
        case LoRA() | AdaLoRA():
            fields = {k: v for k, v in vars(update).items() if k != "transposed"}
            return type(update)(**fields, transposed=flag)
        case OFT():
            return OFT(update.generator, update.terms, update.eps, transposed=flag)
    return update


def gpt2_truth(adapters: list[Adapter]) -> dict[str, np.ndarray]:
    """Returns the updates applied to the (out, in) matrices, in the stored orientation."""
    out = dict(GPT2)
    for site in (*CONV1D, *LINEAR):
        transposed_if_conv1d = (lambda x: x.T) if site in CONV1D else (lambda x: x)
        chain = []
        for adapter in adapters:
            update = adapter.updates[site]
            if isinstance(update, Replace) and update.weight is not None:
                update = Replace(transposed_if_conv1d(np.asarray(update.weight)), update.bias)
            chain.append((adapter.strength, update))
        weight, bias = fold(chain, transposed_if_conv1d(out[f"{site}.weight"]), out[f"{site}.bias"])
        assert weight is not None and bias is not None
        out[f"{site}.weight"], out[f"{site}.bias"] = transposed_if_conv1d(weight), bias
    return out


def gpt2_adapters(flag: bool, kinds: tuple[str, ...]) -> list[Adapter]:
    """Returns an adapter of each kind at all sites."""
    return [
        Adapter(
            {s: flagged(s, kind, 10 * i + j, flag) for j, s in enumerate((*CONV1D, *LINEAR))},
            0.5 + 0.2 * i,
            f"{i}",
        )
        for i, kind in enumerate(kinds)
    ]


GPT2_KINDS = ("LoRA", "Replace", "OFT", "DoRA", "AdaLoRA", "LoHa", "SHiRA")


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("kinds", [GPT2_KINDS, ("Replace",), ("Replace", "LoRA")], ids=str)
def test_conv1d(kinds: tuple[str, ...], flag: bool) -> None:
    """PEFT saves the last layer's flag for all layers; biases determine each layer's orientation.

    Leaves of the same name determine that of square layers.
    """
    adapters = gpt2_adapters(flag, kinds)
    with jax.enable_x64(True), uncompiled():
        out = jaxmix.compose(GPT2, adapters)
    for name, leaf in gpt2_truth(adapters).items():
        np.testing.assert_allclose(out[name], leaf, rtol=1e-10, atol=1e-10, err_msg=name)


def flax_gpt2(flat: Mapping[str, Any], is_out_first: bool) -> dict[str, Any]:
    """Returns kernels (in, out), or (out, in) for Conv1D if `is_out_first`, as in Flax's GPT-2."""
    out: dict[str, Any] = {}
    for name, leaf in flat.items():
        site, _, part = name.rpartition(".")
        if part != "weight" or site == "wte":
            out[name] = leaf
        else:
            out[f"{site}.kernel"] = leaf if site in CONV1D and not is_out_first else leaf.T
    return out


@pytest.mark.parametrize("is_out_first", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_conv1d_in_flax(flag: bool, is_out_first: bool) -> None:
    """Biases determine the orientation in Flax trees too."""
    adapters = gpt2_adapters(flag, tuple(kind for kind in GPT2_KINDS if kind != "Replace"))
    with jax.enable_x64(True), uncompiled():
        out = jaxmix.compose(flax_gpt2(GPT2, is_out_first), adapters)
    for name, leaf in flax_gpt2(gpt2_truth(adapters), is_out_first).items():
        np.testing.assert_allclose(out[name], leaf, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("is_out_first", [False, True])
def test_saved_weights_of_conv1d_in_flax(is_out_first: bool) -> None:
    """A saved Conv1D weight is (in, out); its shape, or a flag at the site, shows it."""
    adapters = gpt2_adapters(True, ("Replace", "LoRA"))
    for keep in (CONV1D, (*CONV1D[::2], "score", "other.square")):
        chosen = adapters if keep is CONV1D else adapters[:1]
        chosen = [Adapter({s: a.updates[s] for s in keep}, 0.5, a.name) for a in chosen]
        filled = [
            Adapter({**dict.fromkeys((*CONV1D, *LINEAR), Replace()), **a.updates}, 0.5, a.name)
            for a in chosen
        ]
        with jax.enable_x64(True), uncompiled():
            out = jaxmix.compose(flax_gpt2(GPT2, is_out_first), chosen)
        for name, leaf in flax_gpt2(gpt2_truth(filled), is_out_first).items():
            np.testing.assert_allclose(out[name], leaf, rtol=1e-10, atol=1e-10, err_msg=name)


def test_flag_decides_if_the_tree_does_not() -> None:
    """Without biases, the factors' shapes decide, or the flag if the weight is square."""
    params = {n: x for n, x in GPT2.items() if not n.endswith(".bias")}
    update: Any = flagged("h.0.attn.c_proj", "LoRA", 3, True)
    update = LoRA(update.a, update.b, update.scale, transposed=True)
    with jax.enable_x64(True):
        out = jaxmix.compose(params, [Adapter({"h.0.attn.c_proj": update})])
    expected = fold([(1.0, update)], GPT2["h.0.attn.c_proj.weight"].T)[0]
    assert expected is not None
    np.testing.assert_allclose(out["h.0.attn.c_proj.weight"], expected.T, rtol=1e-12)
    for site, flag in (("h.0.attn.c_attn", True), ("score", True), ("score", False)):
        update = flagged(site, "AdaLoRA", 3, flag)
        with jax.enable_x64(True):
            out = jaxmix.compose(params, [Adapter({site: update})])
        base = GPT2[f"{site}.weight"]
        expected = fold([(1.0, update)], base.T if site in CONV1D else base)[0]
        assert expected is not None
        expected = expected.T if site in CONV1D else expected
        np.testing.assert_allclose(out[f"{site}.weight"], expected, rtol=1e-12)


def test_factors_for_another_orientation() -> None:
    """Without a flag, a bias, or namesakes, transposed factors are refused."""
    params = {"a.weight": ones((8, 6), np.float32)}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  a: lora_A has shape (2, 8), expected (2, 6); lora_B has "
            "shape (6, 2), expected (8, 2) from weight (8, 6)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size?"
        ),
    ):
        jaxmix.compose(params, [Adapter({"a": draw_update("LoRA", Module("linear", (6, 8)), 0)})])


def test_saved_weight_of_another_orientation() -> None:
    """A saved weight that is the transpose of PyTorch's is refused."""
    params = {"a.weight": ones((8, 6), np.float32)}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  a: saved weight has shape (6, 8), expected (8, 6)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size? If it was trained with more tokens, resize "
            "these leaves of the params first, or merge into the "
            "checkpoint with jaxmix.merge_checkpoint(..., resize=True)."
        ),
    ):
        jaxmix.compose(params, [Adapter({"a": Replace(ones((6, 8)))})])


def test_flax_kernel_with_one_axis() -> None:
    """A kernel with one axis has no inputs and outputs."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "leaves that can't take an adapter, expected arrays of floats:\n"
            "  a: a.kernel of shape (6,) does not have the axes '... i o -> o i ...' of the "
            "layout's rule (Wrong shape: expected >=2 dims. Received 1-dim tensor.). Fix the rule."
        ),
    ):
        jaxmix.compose({"a.kernel": ones(6, np.float32)}, [Adapter({"a": Replace(ones(6))})])


@pytest.mark.parametrize("size", [(4, 6), (4, 4)])
def test_saved_conv1d_weight_with_a_lora(size: tuple[int, int]) -> None:
    """In one adapter at one site, the saved Conv1D is (in, out) and the LoRA's BA (out, in)."""
    rng, (in_size, out_size) = np.random.default_rng(0), size
    weight, a, b = normal(rng, *size), normal(rng, 2, in_size), normal(rng, out_size, 2)
    parts = (Replace(weight=weight), LoRA(a=a, b=b, scale=0.5, transposed=True))
    adapter = Adapter({"h.c_proj": Together(parts)})
    with jax.enable_x64(True):
        out = jaxmix.compose({"h.c_proj.weight": normal(rng, *size)}, adapter)
    np.testing.assert_allclose(out["h.c_proj.weight"], weight + 0.5 * (b @ a).T, rtol=1e-12)
