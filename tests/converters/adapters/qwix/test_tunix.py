"""tunix's LoRA, and its step folders."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

import jaxmix
from jaxmix.converters.adapters.qwix import qwix_adapter

from .trees import drawn

N, K, D, H, F, R = 4, 2, 10, 6, 7, 2


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
