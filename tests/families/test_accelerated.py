"""Families whose Δ has another form on a TPU, against the CPU's form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix.affine import Base
from jaxmix.families import FourierFT, RandLoRA, Update, fourierft, randlora
from jaxmix.operators import backends

RNG = np.random.default_rng(0)
SHAPE = (12, 20)


def drawn(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape), np.float32)


POSITIONS = jnp.asarray(np.stack([RNG.integers(0, n, 300) for n in SHAPE]), np.int32)
UPDATES: dict[str, Update] = {
    "FourierFT": FourierFT(drawn(300), POSITIONS, 9.0),
    "RandLoRA": RandLoRA(drawn(4, 1, 12), drawn(20, 3, 4), drawn(4, 3), drawn(3, 12), 0.5),
}


def delta(update: Update) -> Any:
    return update.weight_map(Base(None, SHAPE), jnp.ones((), np.float32)).shift.dense()


def slopes(update: Any) -> Any:
    """The gradients of the first trained field."""
    name = update.trained[0]

    def total(x: Any) -> Any:
        fields = {**vars(update), name: x}
        return jnp.sum(delta(type(update)(**fields)) ** 2)

    return jax.grad(total)(getattr(update, name))


@pytest.mark.parametrize("kind", UPDATES)
def test_the_form_of_a_tpu_equals_that_of_a_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To float32 noise, with gradients."""
    expected = delta(UPDATES[kind]), slopes(UPDATES[kind])

    def on_tpu(cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(backends.TPU, *operands)

    for module in (fourierft, randlora):
        monkeypatch.setattr(module, "by_platform", on_tpu)
    with jax.default_matmul_precision("highest"):
        found = delta(UPDATES[kind]), slopes(UPDATES[kind])
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
