"""Factors named lora_a and lora_b: flax.nnx.LoRA, openpi's einsums; and tunix's step folders."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.qwix import is_qwix, qwix_adapter
from jaxmix.errors import CheckpointError, ShapeError

from ....messages import full_text
from ....uncompiled import uncompiled

L, N, K, D, H, F, R = 3, 4, 2, 10, 6, 7, 2


def drawn(*shape: int, seed: int = 0) -> Any:
    """Returns random numbers in float64."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def pure(module: nnx.Module, kind: Any = nnx.Param) -> Any:
    """Returns the pure dict of a module's variables."""
    return nnx.to_pure_dict(nnx.state(module, kind))


# ------------------------------------------------------------------------------- flax.nnx.LoRA


class Mixed(nnx.Module):
    """A layer with LoRA inside, and a layer wrapped by LoRA."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"rngs": rngs, "param_dtype": jnp.float64}
        draw = nnx.initializers.normal()
        self.up = nnx.LoRALinear(
            4, 6, lora_rank=2, lora_param_dtype=jnp.float64, b_initializer=draw, **options
        )
        inner = nnx.Linear(6, 5, **options)
        self.down = nnx.LoRA(6, 3, 5, base_module=inner, b_initializer=draw, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both layers."""
        return self.down(jnp.tanh(self.up(x)))


class Plain(nnx.Module):
    """The same layers without LoRA."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(4, 6, rngs=rngs, param_dtype=jnp.float64)
        self.down = nnx.Linear(6, 5, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies both layers."""
        return self.down(jnp.tanh(self.up(x)))


def test_flax_lora_matches_its_forward() -> None:
    """LoRALinear and LoRA have no alpha; both apply to the plain model's tree."""
    with jax.enable_x64(True):
        model = Mixed(nnx.Rngs(0))
        base = Plain(nnx.Rngs(1))
        base.up.kernel[...] = model.up.kernel[...]
        inner: Any = model.down.base_module
        base.down.kernel[...] = inner.kernel[...]
        x = jnp.asarray(drawn(3, 4))
        adapter = qwix_adapter(pure(model))
        assert adapter.sites == ("down", "up")
        output = jaxmix.compose(base, adapter)(x)
        np.testing.assert_allclose(output, model(x), rtol=1e-12)
        assert np.abs(np.asarray(base(x) - model(x))).max() > 1e-3
        # For a wrapped layer, the site is the inner layer's kernel.
        wrapped = jaxmix.compose(model, adapter)
        delta = np.asarray(wrapped.down.base_module.kernel[...] - inner.kernel[...])
        np.testing.assert_allclose(delta, model.down.lora_a[...] @ model.down.lora_b[...])


def test_alpha_of_flax_lora_must_be_the_rank() -> None:
    """An alpha equal to the rank changes nothing; another alpha is refused."""
    tree = {"up": {"kernel": drawn(4, 6), "lora": {"lora_a": drawn(4, 2), "lora_b": drawn(2, 6)}}}
    update: Any = qwix_adapter(tree, alpha=2).updates["up"]
    assert update.scale == 1.0
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree: alpha = 6 was given, but flax.nnx.LoRA has no "
            "alpha, and its scale is 1:\n"
            "  up: rank 2\n"
            "Leave alpha out."
        ),
    ):
        qwix_adapter(tree, alpha=6)


def test_named_and_bare_factors_are_read_together() -> None:
    """Both spellings are read; if their library is unclear, alpha is required."""
    tree = {
        "q": {"kernel_lora_a": drawn(4, 2), "kernel_lora_b": drawn(2, 3)},
        "v": {"lora_a": drawn(4, 2, seed=1), "lora_b": drawn(2, 5, seed=1)},
        "up": {"lora": {"lora_a": drawn(4, 2, seed=2), "lora_b": drawn(2, 5, seed=2)}},
    }
    updates: Any = qwix_adapter(tree, alpha=6).updates
    assert {site: update.scale for site, update in updates.items()} == {"q": 3.0, "v": 3.0, "up": 1}
    np.testing.assert_array_equal(updates["v"].b @ updates["v"].a, (
        tree["v"]["lora_a"] @ tree["v"]["lora_b"]
    ).T)  # fmt: skip
    message = (
        "the tree: qwix has alpha in its rule and openpi in its config, not with the factors, and "
        "the metadata does not state it (found None). Pass it: load(path, alpha=…). flax.nnx.LoRA "
        "has none: pass the rank as alpha."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        qwix_adapter({"v": tree["v"]})
    strange = {**tree, "lora_a": drawn(4, 2), "x": {"lora_c": drawn(2)}}
    message = (
        "the tree: leaves of LoRA with unknown names:\n"
        "  lora_a is neither <leaf>_lora_a nor <leaf>_lora_b, nor a lora_a\n"
        "  x.lora_c is neither <leaf>_lora_a nor <leaf>_lora_b, nor a lora_a\n"
        "Remove or rename them."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        qwix_adapter(strange, alpha=6)


def test_bare_factors_are_recognised_unless_mlx(tmp_path: Path) -> None:
    """A file of bare factors is recognised, unless mlx-lm's config is next to it."""
    path = tmp_path / "x.safetensors"
    save_file({"v.lora_a": drawn(4, 2), "v.lora_b": drawn(2, 5)}, path)
    update: Any = jaxmix.load(path, alpha=4).updates["v"]
    assert update.scale == 2.0 and is_qwix(path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_qwix(path)


# ------------------------------------------------------------------------------------- openpi


def openpi(stacked: bool = True) -> dict[str, Any]:
    """Returns openpi's tree: leaves of the einsums and the MLP, with factors."""
    shapes = {
        "attn.q_einsum.w": (N, D, H),
        "attn.kv_einsum.w": (2, K, D, H),
        "attn.attn_vec_einsum.w": (N, H, D),
        "attn.q_einsum_1.w": (N, D, H),
        "mlp.gating_einsum": (2, D, F),
        "mlp.linear": (F, D),
    }
    lead = (L,) if stacked else ()
    leaves: dict[str, Any] = {"action_in_proj.kernel": drawn(4, D)}
    for name, shape in shapes.items():
        above = "PaliGemma.llm.layers." + name
        module, dot, _ = above.rpartition(".w")
        stem = f"{module}.lora" if dot else f"{above}_lora"
        leaves[above] = drawn(*lead, *shape)
        leaves[f"{stem}_a"] = drawn(*lead, *shape[:-1], R, seed=1)
        leaves[f"{stem}_b"] = drawn(*lead, *shape[:-2], R, shape[-1], seed=2)
    return leaves


def openpi_deltas(leaves: dict[str, Any], scale: float) -> dict[str, Any]:
    """Returns what openpi's forward adds to each leaf; its MLP has no scale."""
    above = "PaliGemma.llm.layers."
    equations = {
        "attn.q_einsum": "lndr,lnrh->lndh",
        "attn.q_einsum_1": "lndr,lnrh->lndh",
        "attn.kv_einsum": "lckdr,lckrh->lckdh",
        # "BTNH,NHr->BTr" and "BTr,NrD->BTD": b is summed over the heads.
        "attn.attn_vec_einsum": "lnhr,lmrd->lnhd",
    }
    deltas = {
        f"{above}{name}.w": scale
        * np.einsum(equation, leaves[f"{above}{name}.lora_a"], leaves[f"{above}{name}.lora_b"])
        for name, equation in equations.items()
    }
    for name, equation in (("gating_einsum", "lcdr,lcrf->lcdf"), ("linear", "lfr,lrd->lfd")):
        a, b = (leaves[f"{above}mlp.{name}_lora_{x}"] for x in "ab")
        deltas[f"{above}mlp.{name}"] = np.einsum(equation, a, b)
    return deltas


@pytest.mark.parametrize("use_rslora", [False, True])
def test_openpi_matches_its_formula(use_rslora: bool) -> None:
    """Named and bare factors, per head and summed over heads, match openpi's formula."""
    leaves = openpi()
    scale = 6 / np.sqrt(R) if use_rslora else 6 / R
    with jax.enable_x64(True), uncompiled():
        adapter = qwix_adapter(leaves, alpha=6, use_rslora=use_rslora)
        assert len(adapter.sites) == 6 * L
        composed = jaxmix.compose(leaves, adapter)
    for name, delta in openpi_deltas(leaves, scale).items():
        np.testing.assert_allclose(composed[name], leaves[name] + delta, atol=1e-12, err_msg=name)
        assert np.abs(delta).max() > 0.1
    assert composed["action_in_proj.kernel"] is leaves["action_in_proj.kernel"]


def test_misshaped_openpi_einsums_are_listed() -> None:
    """All misshaped einsums are listed in one error."""
    leaves = {
        "layers.attn.q_einsum.lora_a": drawn(L, N, D, R),
        "layers.attn.q_einsum.lora_b": drawn(L, N + 1, R, H),
        "layers.attn.kv_einsum.lora_a": drawn(L, 2, K, D, R),
        "layers.attn.kv_einsum.lora_b": drawn(L, 2, K, R + 1, H),
    }
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  layers.attn.kv_einsum: (2, 2, 10, 2) and (2, 2, 3, 6)\n"
            "  layers.attn.q_einsum: (4, 10, 2) and (5, 2, 6)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(leaves, alpha=1)


def test_use_rslora_needs_openpi() -> None:
    """Qwix always divides by the rank, so `use_rslora` is refused."""
    tree = {"q": {"kernel_lora_a": drawn(4, 2), "kernel_lora_b": drawn(2, 3)}}
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree: use_rslora is for openpi's einsums, and qwix has "
            "no such scale. Leave it out."
        ),
    ):
        qwix_adapter(tree, alpha=2, use_rslora=True)


# -------------------------------------------------------------------------------------- tunix


class Einsum(nnx.Module):
    """tunix's einsum, with a weight named w."""

    def __init__(self, equation: str, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.einsum_str = equation
        self.w = nnx.Param(nnx.initializers.normal()(rngs.params(), shape, jnp.float64))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the einsum."""
        return jnp.einsum(self.einsum_str, x, self.w[...])


class Attention(nnx.Module):
    """The projections of Llama's attention, or Gemma's with one leaf for keys and values."""

    def __init__(self, is_gemma: bool, rngs: nnx.Rngs) -> None:
        if is_gemma:
            self.q_einsum = Einsum("BTD,NDH->BTNH", (N, D, H), rngs)
            self.kv_einsum = Einsum("BSD,CKDH->CBSKH", (2, K, D, H), rngs)
            self.attn_vec_einsum = Einsum("BTNH,NHD->BTD", (N, H, D), rngs)
        else:
            self.q_proj = Einsum("BTD,DNH->BTNH", (D, N, H), rngs)
            self.k_proj = Einsum("BSD,DKH->BSKH", (D, K, H), rngs)
            self.v_proj = Einsum("BSD,DKH->BSKH", (D, K, H), rngs)
            self.o_proj = Einsum("BTNH,NHD->BTD", (N, H, D), rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Computes an output that depends on every projection."""
        if hasattr(self, "q_einsum"):
            q, (k, v), out = self.q_einsum(x), self.kv_einsum(x), self.attn_vec_einsum
        else:
            q, k, v, out = self.q_proj(x), self.k_proj(x), self.v_proj(x), self.o_proj
        rest = jnp.tile(k * v, (1, 1, N // K, 1))
        return out(q * rest)


class MLP(nnx.Module):
    """A gate, an up and a down projection."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"use_bias": False, "rngs": rngs, "param_dtype": jnp.float64}
        self.gate_proj, self.up_proj = nnx.Linear(D, F, **options), nnx.Linear(D, F, **options)
        self.down_proj = nnx.Linear(F, D, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies a gated layer."""
        return self.down_proj(jnp.tanh(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Attention and an MLP."""

    def __init__(self, is_gemma: bool, rngs: nnx.Rngs) -> None:
        self.attn, self.mlp = Attention(is_gemma, rngs), MLP(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies attention, then the MLP."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class Tunix(nnx.Module):
    """Two layers with the names of tunix's models."""

    def __init__(self, is_gemma: bool, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([Layer(is_gemma, rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies all layers."""
        for layer in self.layers:
            x = layer(x)
        return x


def with_lora(is_gemma: bool, x: jax.Array) -> tuple[Any, Any]:
    """Returns a model, and the same with qwix's LoRA and random factors."""
    base = Tunix(is_gemma, nnx.Rngs(0))
    rule = qwix.LoraProvider(module_path=".*", rank=R, alpha=5.0)
    model = qwix.apply_lora_to_model(Tunix(is_gemma, nnx.Rngs(0)), rule, x, rngs=nnx.Rngs(1))
    state = nnx.state(model, nnx.LoRAParam)
    new = jax.tree.map(lambda leaf: jnp.asarray(0.3 * drawn(*leaf.shape)), state)
    nnx.update(model, new)
    return base, model


# qwix uses a deprecated API of Flax, and one that Flax 0.12.0 does not have yet.
@pytest.mark.skipif(
    not hasattr(nnx.Variable, "get_raw_value"), reason="qwix 0.1.8 needs a newer Flax"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("has_whole_state", [False, True], ids=["lora", "whole"])
@pytest.mark.parametrize("is_gemma", [False, True], ids=["llama", "gemma"])
def test_tunix_step_folder_matches_qwix(
    is_gemma: bool, has_whole_state: bool, tmp_path: Path
) -> None:
    """A checkpoint of LoRA or all params loads without a layout and matches qwix's forward."""
    ocp = pytest.importorskip("orbax.checkpoint")
    with jax.enable_x64(True):
        x = jnp.asarray(drawn(2, 3, D))
        base, model = with_lora(is_gemma, x)
        state = nnx.state(model, nnx.Param if has_whole_state else nnx.LoRAParam)
        with ocp.PyTreeCheckpointer() as writer:
            writer.save(tmp_path / "run" / "20" / "model_params", nnx.to_pure_dict(state))
        adapter = jaxmix.load(tmp_path / "run" / "20", alpha=5)
        projections = [f"self_attn.{p}_proj" for p in "qkvo"]
        projections += [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
        names = {f"model.layers.{i}.{name}" for i in range(2) for name in projections}
        assert set(adapter.sites) == names
        output = jaxmix.compose(base, adapter)(x)
        np.testing.assert_allclose(output, model(x), rtol=1e-12)
        assert np.abs(np.asarray(base(x) - model(x))).max() > 0.1
        reloaded = jaxmix.load(tmp_path / "run", alpha=5)
    assert reloaded.sites == adapter.sites


def test_run_of_several_steps_is_ambiguous(tmp_path: Path) -> None:
    """The user must choose a step."""
    for step in (5, 20):
        (tmp_path / str(step) / "model_params").mkdir(parents=True)
        (tmp_path / str(step) / "model_params" / "_METADATA").write_text(json.dumps({}))
    message = f"{tmp_path} has the steps 5, 20. Pass the folder of one of them."
    with pytest.raises(CheckpointError, match=full_text(message)):
        jaxmix.load(tmp_path, alpha=5)


def test_leaves_outside_tunix_keep_their_paths() -> None:
    """Names are translated only if all leaves can belong to a tunix model."""
    mlp = {"layers.0.mlp.up_proj.kernel_lora_a": drawn(D, R)}
    mlp["layers.0.mlp.up_proj.kernel_lora_b"] = drawn(R, F)
    assert qwix_adapter(mlp, alpha=1).sites == ("layers.0.mlp.up_proj",)
    leaves = {
        f"layers.0.attn.q_proj.w_lora_{x}": y
        for x, y in (("a", drawn(D, R)), ("b", drawn(R, N, H)))
    }
    assert qwix_adapter({**mlp, **leaves}, alpha=1).sites == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
    )
    other = {"tower.w_lora_a": drawn(D, R), "tower.w_lora_b": drawn(R, F)}
    assert "layers.0.attn.q_proj" in qwix_adapter({**leaves, **other}, alpha=1).sites


def test_invalid_alpha_in_metadata_is_refused(tmp_path: Path) -> None:
    """An invalid alpha in the metadata is reported, not ignored."""
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = {"q": {"kernel_lora_a": drawn(4, 2), "kernel_lora_b": drawn(2, 3)}}
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(tmp_path / "0" / "items", tree)
    metadata = {"custom_metadata": {"lora": {"lora_alpha": [1]}}}
    (tmp_path / "0" / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/0: the metadata has alpha = [1], expected a number. "
            "Pass it: load(path, alpha=…)."
        ),
    ):
        jaxmix.load(tmp_path / "0")
