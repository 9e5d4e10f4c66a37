"""A mix trained in JAX on the demo's text gives the same loss in PEFT after export."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("peft")
pytest.importorskip("transformers")

import torch
import transformers

import jaxmix
from jaxmix.demo import ASSETS
from jaxmix.training import init, trainable

from ..parity.harness import exact
from .samples import stepped

TEXT = np.frombuffer((ASSETS / "text" / "bible.txt").read_bytes(), np.uint8).astype(np.int32)
LENGTH, ROWS, STEPS = 64, 8, 6
# Windows of the text, for training and for evaluation.
SEEN = np.stack([TEXT[768 * k : 768 * k + LENGTH] for k in range(ROWS)])
UNSEEN = np.stack([TEXT[768 * k + 384 : 768 * k + 384 + LENGTH] for k in range(4)])


def loss(model: Any, tokens: Any) -> Any:
    """Returns the loss in nats per byte."""
    logits = model(tokens)[:, :-1]
    log_probabilities = jnp.take_along_axis(
        jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1
    )
    return -jnp.mean(log_probabilities)


def peft_loss_of(folder: Path) -> float:
    """Returns the loss of PEFT's mixed model, loaded by the exported script, in float64."""
    with exact():
        base: Any = transformers.LlamaForCausalLM.from_pretrained(ASSETS / "base").double()
        model = runpy.run_path(str(folder / "load_in_peft.py"))["load"](base).eval()
        tokens = torch.from_numpy(UNSEEN).long()
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return float(
            torch.nn.functional.cross_entropy(logits.reshape(-1, 256), tokens[:, 1:].reshape(-1))
        )


@pytest.mark.thorough
def test_trained_mix_has_the_same_loss_in_peft(tmp_path: Path) -> None:
    """A new LoRA and a new OFT are trained together, unmerged."""
    base = jaxmix.models.load(ASSETS / "base", dtype=jnp.float32)
    key = jax.random.key(0)
    mixed = jaxmix.mix(
        init("lora", base, key, target_modules=["q_proj", "o_proj"], rank=4, alpha=8),
        init("oft", base, key, target_modules=["q_proj", "down_proj"], oft_block_size=32),
    )
    values, rebuild = trainable(mixed)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(values: Any, state: Any, rebuild: Any, base: Any) -> Any:
        def batch_loss(values: Any) -> Any:
            return jaxmix.factored(loss)(jaxmix.attach(base, rebuild(values)), SEEN)

        value, gradients = jax.value_and_grad(batch_loss)(values)
        return *stepped(optimizer, gradients, state, values), value

    state, losses = optimizer.init(values), []
    for _ in range(STEPS):
        values, state, value = step(values, state, rebuild, base)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.2

    trained = rebuild(values)
    jaxmix.export_peft(trained, tmp_path / "mix")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_loss = peft_loss_of(tmp_path / "mix")
    with jax.enable_x64(True):
        base64 = jaxmix.models.load(ASSETS / "base", dtype=jnp.float64)
        run = jax.jit(loss)
        before = float(run(base64, UNSEEN))
        jax_loss = float(run(jaxmix.compose(base64, trained), UNSEEN))
    # transformers computes norms in float32, whatever the model's dtype.
    assert abs(jax_loss - peft_loss) < 1e-6
    assert peft_loss < before - 0.1
