"""Measures held-out loss, sample passages, and the times of compose and of generating a token."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

import jaxmix
from jaxmix.demo import ASSETS
from jaxmix.errors import CheckpointError
from jaxmix.models import Decoder, generate

__all__ = ["Demo", "Row", "Times", "passage", "read_demo", "rows", "times"]

# The orders that are shown. LoRA and LoHa commute, so one order of the two suffices.
ORDERS = (
    (), ("lora",), ("loha",), ("oft",),
    ("lora", "loha"), ("lora", "oft"), ("oft", "lora"), ("loha", "oft"), ("oft", "loha"),
    ("lora", "loha", "oft"), ("oft", "lora", "loha"),
)  # fmt: skip
# All three again at half strength, which PEFT does not support, so it is not compared.
WEAKER = (("lora", "loha", "oft"), 0.5)


@dataclass(frozen=True)
class Demo:
    """The demo's assets: the base in float32, the adapters, held-out bytes and PEFT's figures.

    Args:
        base: The small Llama.
        adapters: The adapters by name.
        windows: Held-out bytes by domain, each (windows, 256).
        recorded: The contents of ``recorded.json``.
    """

    base: Decoder
    adapters: dict[str, jaxmix.Adapter]
    windows: dict[str, Int[np.ndarray, "windows length"]]
    recorded: Mapping[str, Any]

    def peft(self, order: tuple[str, ...]) -> dict[str, float]:
        """Returns the losses of PEFT's forward for adapters in this order."""
        rows = self.recorded["losses"]
        return next(row["peft_forward"] for row in rows if tuple(row["order"]) == order)

    def mixed(self, order: tuple[str, ...], strength: float = 1.0) -> Decoder:
        """Returns the base with adapters in this order."""
        mixed = jaxmix.mix(*(self.adapters[name] for name in order), strength=strength)
        return jaxmix.compose(self.base, mixed)


@dataclass(frozen=True)
class Row:
    """The losses of one model in nats per byte by domain: this library's and PEFT's."""

    order: tuple[str, ...]
    strength: float
    losses: dict[str, float]
    peft: dict[str, float]

    @property
    def label(self) -> str:
        """The adapters in the order in which they are applied."""
        names = " → ".join(self.order) or "base"
        return names if self.strength == 1 else f"{self.strength:g} · ({names})"

    @property
    def difference(self) -> float | None:
        """The largest difference from PEFT in nats per byte; None without recorded figures."""
        differences = (abs(self.losses[domain] - loss) for domain, loss in self.peft.items())
        return max(differences, default=None)


@dataclass(frozen=True)
class Times:
    """Seconds for the first compose of all adapters, with compilation, a later one, and a token."""

    compose_first: float
    compose: float
    token: float


def read_demo(folder: Path = ASSETS) -> Demo:
    """Reads the assets.

    Args:
        folder: The folder with the assets.

    Returns:
        The demo's base, adapters, texts and recorded figures.

    Raises:
        CheckpointError: If a file is missing or damaged.
    """
    try:
        recorded = json.loads((folder / "recorded.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'recorded.json'} can't be read: {error}. Expected the demo's assets. "
            "Reinstall jaxmix, or create them with python -m demo.make_assets."
        ) from error
    rule = recorded["evaluation"]
    length, stride, count = rule["window"], rule["stride"], rule["windows"]
    windows = {}
    for domain in recorded["prompts"]:
        text = np.frombuffer((folder / "text" / f"{domain}.txt").read_bytes(), np.uint8)
        text = text.astype(np.int32)
        windows[domain] = np.stack([text[stride * k : stride * k + length] for k in range(count)])
    base = jaxmix.models.load(folder / "base", dtype=jnp.float32)
    adapters = {name: jaxmix.load(folder / name) for name in recorded["adapters"]}
    return Demo(base, adapters, windows, recorded)


def rows(demo: Demo, step: Callable[[], None]) -> Iterator[Row]:
    """Yields the losses of the base, of each adapter and of their mixes.

    Args:
        demo: The assets.
        step: Called after each domain of each row.

    Yields:
        A row for each model.
    """
    for order, strength in (*((order, 1.0) for order in ORDERS), WEAKER):
        graph, state = nnx.split(demo.mixed(order, strength))
        losses = {}
        for domain, windows in demo.windows.items():
            total = [_loss(graph, state, part) for part in np.split(windows, len(windows) // 8)]
            losses[domain] = float(np.mean(total))
            step()
        yield Row(order, strength, losses, demo.peft(order) if strength == 1 else {})


@partial(jax.jit, static_argnames="graph")
def _loss(graph: nnx.GraphDef[Decoder], state: Any, tokens: Int[Array, "b t"]) -> Float[Array, ""]:
    """Returns the mean of ``-ln p(byte | previous bytes)`` in nats per byte."""
    logits = nnx.merge(graph, state)(tokens)[:, :-1]
    of_next = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(of_next)


def passage(demo: Demo, order: tuple[str, ...], domain: str, *, length: int = 160) -> str:
    """Samples a model's continuation of a domain's prompt at temperature 0.7.

    Args:
        demo: The assets.
        order: The adapters in order of application.
        domain: The domain of the prompt.
        length: The number of bytes.

    Returns:
        The bytes that follow the prompt, as text.
    """
    tokens, mask = _prompt(demo, domain)
    drawn = generate(
        demo.mixed(order),
        tokens,
        mask=mask,
        max_new_tokens=length,
        temperature=0.7,
        top_k=40,
        key=jax.random.key(0),
    )
    new = np.asarray(drawn)[0, tokens.shape[1] :].astype(np.uint8)
    return new.tobytes().decode("ascii", "replace")


def _prompt(demo: Demo, domain: str) -> tuple[Int[Array, "1 t"], Array]:
    """Returns a domain's prompt and mask, left-padded to the longest so all share one program."""
    prompts = demo.recorded["prompts"]
    longest = max(map(len, prompts.values()))
    prompt = prompts[domain].encode()
    padded = np.frombuffer(prompt.rjust(longest, b" "), np.uint8).astype(np.int32)
    return jnp.asarray(padded)[None], jnp.arange(longest)[None] >= longest - len(prompt)


def times(demo: Demo, *, repeats: int = 7, length: int = 64) -> Times:
    """Measures the times of a compose of all adapters, and of generating a token.

    Args:
        demo: The assets.
        repeats: The number of repetitions, of which the median is taken.
        length: The number of tokens of a timed generation.

    Returns:
        The times in seconds.
    """
    order = tuple(demo.adapters)

    def timed(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(work()))
        return time.perf_counter() - start

    jax.clear_caches()
    first = timed(lambda: nnx.split(demo.mixed(order))[1])
    again = [timed(lambda: nnx.split(demo.mixed(order))[1]) for _ in range(repeats)]
    model = demo.mixed(order)
    tokens, mask = _prompt(demo, "bible")
    write = partial(generate, model, tokens, mask=mask, max_new_tokens=length)
    write()
    whole = [timed(write) for _ in range(repeats)]
    return Times(first, float(np.median(again)), float(np.median(whole)) / length)
