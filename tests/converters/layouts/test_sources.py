"""Tables that no library could confirm: compared with NumPy code written from the sources."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter
from jaxmix.families import LoRA

from ...uncompiled import uncompiled

D, N, K, H, F = 12, 4, 2, 6, 20
LAYERS, EXPERTS = 3, 2
SHAPES = {
    "self_attn.q_proj": (N * H, D),
    "self_attn.k_proj": (K * H, D),
    "self_attn.o_proj": (D, N * H),
    **{
        f"block_sparse_moe.experts.{e}.{w}": (D, F) if w == "w2" else (F, D)
        for e in range(EXPERTS)
        for w in ("w1", "w2", "w3")
    },
    "block_sparse_moe.gate": (EXPERTS, D),
}


def weights(shapes: dict[str, tuple[int, int]], above: str) -> dict[str, np.ndarray]:
    """Returns weights with distinct elements."""
    rng = np.random.default_rng(0)
    return {
        f"{above}layers.{i}.{name}.weight": rng.normal(size=shape)
        for i in range(LAYERS)
        for name, shape in shapes.items()
    }


def loras(state: dict[str, np.ndarray]) -> Adapter:
    """Returns a LoRA at every weight."""
    rng = np.random.default_rng(1)
    return Adapter(
        {
            name.removesuffix(".weight"): LoRA(
                rng.normal(size=(2, w.shape[1])), rng.normal(size=(w.shape[0], 2)), 0.5
            )
            for name, w in state.items()
        },
        0.7,
    )


def mixtral(state: dict[str, np.ndarray]) -> Any:
    """MaxText's hooks of Mixtral: scales queries, and stacks experts before layers."""

    def stack(name: str, *shape: int) -> np.ndarray:
        all_ = [state[f"model.layers.{i}.{name}.weight"].T.reshape(shape) for i in range(LAYERS)]
        return np.stack(all_, axis=1)

    def experts(name: str) -> np.ndarray:
        above = "block_sparse_moe.experts"
        return np.stack(
            [
                np.stack([state[f"model.layers.{i}.{above}.{e}.{name}.weight"].T for i in range(3)])
                for e in range(EXPERTS)
            ]
        )

    attention = {
        "query": {"kernel": stack("self_attn.q_proj", D, N, H) / np.sqrt(H)},
        "key": {"kernel": stack("self_attn.k_proj", D, K, H)},
        "out": {"kernel": stack("self_attn.o_proj", N, H, D)},
    }
    moe = {"wi_0": experts("w1"), "wi_1": experts("w3"), "wo": experts("w2")}
    moe["gate"] = {"kernel": stack("block_sparse_moe.gate", D, EXPERTS)}
    return {"params": {"decoder": {"layers": {"self_attention": attention, "MoeBlock_0": moe}}}}


def bonsai(state: dict[str, np.ndarray]) -> Any:
    """Bonsai's tree of Gemma 3: transposes kernels, and changes nothing else."""
    layers: list[Any] = [{"self_attn": {}, "mlp": {}} for _ in range(LAYERS)]
    for name, w in state.items():
        *_, i, block, module, _ = name.split(".")
        layers[int(i)][block][module] = {"kernel": w.T}
    return {"language_model": {"layers": layers}}


DENSE = {
    "self_attn.q_proj": (N * H, D),
    "self_attn.o_proj": (D, N * H),
    "mlp.gate_proj": (F, D),
    "mlp.down_proj": (D, F),
}
TREES = {
    "maxtext_mixtral": (weights(SHAPES, "model."), mixtral, "maxtext_mixtral"),
    "bonsai_gemma3": (weights(DENSE, "language_model.model."), bonsai, None),
}


@pytest.mark.parametrize("name", TREES)
def test_composing_and_converting_commute(name: str) -> None:
    """Composing in the library's tree equals composing first and converting then."""
    state, convert, layout = TREES[name]
    with jax.enable_x64(True), uncompiled():
        lora = loras(state)
        tree = jax.tree.map(jnp.asarray, convert(state))
        composed = jaxmix.compose(tree, lora, layout=layout)
        new = jaxmix.compose({k: jnp.asarray(v) for k, v in state.items()}, lora)
        expected = convert({k: np.asarray(v) for k, v in new.items()})
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)  # noqa: E731
    jax.tree.map(close, composed, expected)
