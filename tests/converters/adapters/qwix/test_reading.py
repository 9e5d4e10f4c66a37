"""Reads the LoRA leaves of qwix and of flax.nnx, with their scales."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.qwix import is_qwix, qwix_adapter
from jaxmix.errors import AdapterError, CheckpointError, ShapeError

from ....goldens.archive import Archive
from ....messages import full_text
from ..peft.folders import refused
from .trees import drawn

GOLDEN = Archive("formats/qwix")
ALPHA = 6.0


def pair(module: str) -> dict[str, np.ndarray]:
    """Returns the two factors of a module."""
    return {f"{module}.kernel_lora_a": drawn(4, 2), f"{module}.kernel_lora_b": drawn(2, 3)}


def test_unstacked_factors_match_qwix(tmp_path):
    """A linear layer and einsums with two output or two input axes match qwix's forward."""
    folder = GOLDEN.unpack(tmp_path)
    base, expected = (GOLDEN.tensors(f"{x}.safetensors") for x in ("base", "nnx.expected"))
    with jax.enable_x64(True):
        adapter = jaxmix.load(folder / "nnx.safetensors", alpha=ALPHA)
        composed = jaxmix.compose(base, [adapter])
        assert len(adapter.sites) == 6
        for name, truth in expected.items():
            assert np.abs(np.asarray(composed[name]) - truth).max() < 1e-12
            assert np.abs(base[name] - truth).max() > 0.1


def test_invalid_factors_are_refused(tmp_path):
    """Missing alpha, missing factors, batched axes, other dtypes and NaN are refused."""
    path = tmp_path / "x.safetensors"
    save_file({"q/kernel_lora_a": drawn(4, 2), "q/kernel_lora_b": drawn(2, 3)}, path)
    assert "Pass it: load(path, alpha=…)." in refused(CheckpointError, path)
    save_file({"q/kernel_lora_a": drawn(4, 2)}, path)
    assert "q.kernel: only lora_a" in refused(CheckpointError, path, alpha=1)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree has no leaves of qwix's LoRA, expected "
            "<leaf>_lora_a and <leaf>_lora_b, or lora_a and lora_b of a "
            "module. Was it saved without the LoRA parameters?"
        ),
    ):
        qwix_adapter({"kernel": drawn(2, 2)}, alpha=1)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.kernel: (4, 3, 2) and (2, 3, 5)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(
            {"q.kernel_lora_a": drawn(4, 3, 2), "q.kernel_lora_b": drawn(2, 3, 5)}, alpha=1
        )
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.kernel: (4,) and (2, 3)\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter({"q.kernel_lora_a": drawn(4), "q.kernel_lora_b": drawn(2, 3)}, alpha=1)
    with pytest.raises(
        AdapterError,
        match=full_text(
            "the tree: q.kernel_lora_a has numbers that are NaN or "
            "infinite. Take an earlier checkpoint."
        ),
    ):
        leaves = {"q.kernel_lora_a": np.full((4, 2), np.nan), "q.kernel_lora_b": drawn(2, 3)}
        qwix_adapter(leaves, alpha=1)
    with pytest.raises(
        CheckpointError,
        match=full_text("the tree: q.kernel_lora_a has dtype int64, expected floats"),
    ):
        leaves = {"q.kernel_lora_a": np.ones((4, 2), int), "q.kernel_lora_b": drawn(2, 3)}
        qwix_adapter(leaves, alpha=1)
    save_file({**pair("q"), "step": drawn(2)}, path)
    assert "tensors that are not factors of qwix:\n  step\n" in refused(CheckpointError, path)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "the tree: leaves of LoRA with unknown names:\n"
            "  q.kernel_lora_c is neither <leaf>_lora_a nor "
            "<leaf>_lora_b, nor a lora_a\n"
            "Remove or rename them."
        ),
    ):
        qwix_adapter({**pair("q"), "q.kernel_lora_c": drawn(2)}, alpha=1)
    assert qwix_adapter({**pair("q"), "step": drawn(2)}, alpha=1).sites == ("q",)
    doubled = {f"q.{leaf}_lora_{x}": drawn(2, 2) for leaf in ("kernel", "w") for x in "ab"}
    with pytest.raises(
        ShapeError,
        match=full_text(
            "the tree: factors that do not fit each other:\n"
            "  q.w: a duplicate of the site q\n"
            "Expected lora_a (in …, r) and lora_b (r, out …); or for "
            "stacked layers (layers, in …, r) and (layers, r, out …), or "
            "(in, layers …, r) and (r, layers, out …). If both are "
            "possible, pass the axis of the layers, 0 or 1: load(path, "
            "axis=…)."
        ),
    ):
        qwix_adapter(doubled, alpha=1)
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "_METADATA").write_text("{}")
    assert "is not a readable Orbax checkpoint: " in refused(CheckpointError, folder)


def pure(module: nnx.Module, kind: Any = nnx.Param) -> Any:
    """Returns the pure dict of a module's variables."""
    return nnx.to_pure_dict(nnx.state(module, kind))


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
    message = full_text(
        "the tree: qwix has alpha in its rule and openpi in its config, not with the factors, and "
        "the metadata does not state it (found None). Pass it: load(path, alpha=…). flax.nnx.LoRA "
        "has none: pass the rank as alpha."
    )
    with pytest.raises(CheckpointError, match=message):
        qwix_adapter({"v": tree["v"]})
    strange = {**tree, "lora_a": drawn(4, 2), "x": {"lora_c": drawn(2)}}
    neither = "is neither <leaf>_lora_a nor <leaf>_lora_b, nor a lora_a"
    message = full_text(
        f"the tree: leaves of LoRA with unknown names:\n  lora_a {neither}\n  x.lora_c {neither}\n"
        "Remove or rename them."
    )
    with pytest.raises(CheckpointError, match=message):
        qwix_adapter(strange, alpha=6)


def test_bare_factors_are_recognised_unless_mlx(tmp_path: Path) -> None:
    """A file of bare factors is recognised, unless mlx-lm's config is next to it."""
    path = tmp_path / "x.safetensors"
    save_file({"v.lora_a": drawn(4, 2), "v.lora_b": drawn(2, 5)}, path)
    update: Any = jaxmix.load(path, alpha=4).updates["v"]
    assert update.scale == 2.0 and is_qwix(path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_qwix(path)


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
