"""Small adapters and params for tests of training."""

from typing import Any

import jax
import numpy as np
import optax

from jaxmix import Adapter
from jaxmix.families import OFT, LoHa, LoRA, Replace, Together, VBLoRA

__all__ = ["PARAMS", "bank", "loha", "lora", "normal", "oft", "stepped", "with_bias"]

PARAMS = {
    "one.weight": np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32),
    "one.bias": np.random.default_rng(1).normal(size=6).astype(np.float32),
    "two.weight": np.random.default_rng(2).normal(size=(4, 6)).astype(np.float32),
}


def normal(seed: int, *shape: int) -> Any:
    """Returns random numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def lora(name: str = "lora") -> Adapter:
    """Returns a LoRA at both sites."""
    update = LoRA(normal(3, 2, 8), normal(4, 6, 2), 0.5)
    return Adapter({"one": update, "two": LoRA(normal(5, 2, 6), normal(6, 4, 2), 0.5)}, name=name)


def oft() -> Adapter:
    """Returns an OFT at the first site."""
    return Adapter({"one": OFT(0.1 * normal(7, 2, 6))}, name="oft")


def loha() -> Adapter:
    """Returns a LoHa at the second site."""
    b1, a1, b2, a2 = (normal(8 + i, *shape) for i, shape in enumerate([(4, 2), (2, 6)] * 2))
    return Adapter({"two": LoHa(b1, a1, b2, a2, 0.3)}, name="loha")


def with_bias() -> Adapter:
    """Returns a LoRA and a trained bias."""
    lora = LoRA(normal(3, 2, 8), normal(4, 6, 2), 0.5)
    return Adapter({"one": Together((Replace(bias=normal(12, 6)), lora))}, name="biased")


def bank() -> Adapter:
    """Returns a VB-LoRA, whose sites share a trained bank."""
    shared: Any = normal(13, 5, 2)
    return Adapter(
        {
            "one": VBLoRA((normal(14, 2, 4, 5),), (normal(15, 3, 2, 5),), shared, 2),
            "two": VBLoRA((normal(16, 2, 3, 5),), (normal(17, 2, 2, 5),), shared, 2),
        },
        name="bank",
    )


def stepped(optimizer: Any, gradient: Any, state: Any, values: Any) -> tuple[Any, Any]:
    """Returns values and state after an optax step, whose Adam promotes integers to floats."""
    with jax.numpy_dtype_promotion("standard"):
        change, state = optimizer.update(gradient, state, values)
        return optax.apply_updates(values, change), state
