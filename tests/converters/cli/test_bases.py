"""Bases of the command line: memory-mapped tensors, or zeros if no update needs more."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix.converters.cli.bases import base_params, map_tensors, needs_base
from jaxmix.errors import CheckpointError
from jaxmix.families import AdaLoRA, Delta, LoHa, LoKr, LoRA, Replace

from ...messages import full_text
from ..bases import load, save_base


def test_needs_base_by_family() -> None:
    """Only additive updates whose factors have the weight's shape need no base."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return np.asarray(rng.normal(size=shape), np.float32)

    additive = {
        "lora": LoRA(draw(2, 5), draw(7, 2), 0.5, bias=draw(7)),
        "adalora": AdaLoRA(draw(2, 5), draw(7, 2), draw(2), 0.5),
        "loha": LoHa(draw(7, 2), draw(2, 5), draw(7, 2), draw(2, 5), 0.5),
        "lokr": LoKr((draw(3, 2), draw(2, 4)), (draw(5, 6),), 0.5),
        "delta": Delta(draw(7, 5), draw(7)),
        "lm_head": LoRA(draw(2, 5), draw(7, 2), 0.5),
        "model.embed_tokens": LoRA(draw(2, 5), draw(7, 2), 0.5, embedding=True),
    }
    mixed = jaxmix.mix(jaxmix.Adapter(additive))
    assert needs_base(mixed) == []
    params, layout = base_params(mixed, None)
    after = jaxmix.compose(params, mixed, layout=layout)
    assert after["lokr.weight"].shape == (15, 24)
    assert all(np.any(np.asarray(after[f"{site}.weight"])) for site in additive)
    x, y = additive["lokr"].x[0] @ additive["lokr"].x[1], additive["lokr"].y[0]
    np.testing.assert_allclose(after["lokr.weight"], 0.5 * np.kron(x, y), rtol=1e-5)
    reading = {
        "dora": LoRA(draw(2, 5), draw(7, 2), 0.5, magnitude=draw(7)),
        "whole": Replace(draw(7, 5)),
        "bias": Replace(bias=draw(7)),
        "core": LoHa(
            draw(2, 7), draw(2, 5), draw(2, 7), draw(2, 5), 0.5, draw(2, 2, 3), draw(2, 2, 3)
        ),
    }
    for site, update in reading.items():
        message = (
            "these adapters need the base, which is not given:\n"
            f"  adapter: {update.family} {update.size()} at {site}\n"
            "Pass the model that they were trained on: --base FOLDER."
        )
        with pytest.raises(CheckpointError, match=full_text(message)):
            base_params(jaxmix.Adapter({site: update}), None)


def test_base_is_memory_mapped(tmp_path: Path) -> None:
    """Float tensors of all files are mapped unchanged, bfloat16 too; other dtypes as bytes."""
    for dtype in (np.float32, jnp.bfloat16):
        folder = save_base(tmp_path / np.dtype(dtype).name, shards=2, dtype=dtype)
        found, expected = map_tensors(folder), load(folder)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            same = tensor if tensor.dtype == dtype else tensor.view(np.uint8)
            np.testing.assert_array_equal(found[name], same)
            assert isinstance(found[name], np.memmap) and found[name].dtype == same.dtype
