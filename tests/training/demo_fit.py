"""Learns the strengths of the demo's LoRA (Bible) and LoHa (Jargon File) on text new to both."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxmix
from jaxmix.demo import ASSETS
from jaxmix.demo.measure import Demo, read_demo
from jaxmix.training import Fit, fit

__all__ = ["DOMAINS", "Trial", "batches", "loss", "trial"]

# The domains that the two adapters were trained on.
DOMAINS = ("bible", "jargon")


@dataclass(frozen=True)
class Trial:
    """The demo's base, the mix of the two adapters, and methods that measure them."""

    demo: Demo
    mix: jaxmix.Mix

    def fitted(self, per: Any, steps: int, rows: int = 8, length: int = 256) -> Fit:
        """Returns the strengths learned in this number of steps."""
        step_batches = batches(steps, rows, length)
        return fit(self.mix, self.demo.base, loss, step_batches, per=per, progress=False)

    def losses(self, mixed: jaxmix.Mix, windows: int = 32) -> dict[str, float]:
        """Returns the held-out loss per domain, on the windows that the demo measures."""
        graph, state = nnx.split(jaxmix.compose(self.demo.base, mixed))
        parts = {domain: self.demo.windows[domain][:windows] for domain in DOMAINS}
        return {
            domain: float(np.mean([_loss(graph, state, x) for x in np.split(part, windows // 8)]))
            for domain, part in parts.items()
        }


def trial() -> Trial:
    """Reads the demo, with a mix of its LoRA and its LoHa."""
    demo = read_demo()
    return Trial(demo, jaxmix.mix(demo.adapters["lora"], demo.adapters["loha"]))


def loss(model: Any, tokens: Any) -> Any:
    """Returns the loss in nats per byte."""
    logits = model(tokens)[:, :-1]
    log_probabilities = jnp.take_along_axis(
        jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1
    )
    return -jnp.mean(log_probabilities)


@partial(jax.jit, static_argnums=0)
def _loss(graph: Any, state: Any, tokens: Any) -> Any:
    return loss(nnx.merge(graph, state), tokens)


def batches(steps: int, rows: int, length: int) -> Sequence[np.ndarray]:
    """Returns batches of both domains in equal parts, from bytes outside the measured windows."""
    starts = [768 * k + shift for shift in (256, 512) for k in range(32)]
    order = np.random.default_rng(0).permutation(np.array(starts * (1 + steps * rows // 128)))
    texts = [np.frombuffer((ASSETS / "text" / f"{d}.txt").read_bytes(), np.uint8) for d in DOMAINS]
    half = rows // 2
    return [
        np.stack([text[at : at + length] for text in texts for at in order[half * i :][:half]])
        .astype(np.int32)
        for i in range(steps)
    ]  # fmt: skip
