"""NaN and infinity: an error if the mix makes them, unchanged if the base has them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, verify_merge
from jaxmix.errors import CheckpointError
from jaxmix.families import IA3, OFT, LoRA, Normed, Replace

from ...messages import full_text

OUT, IN = 6, 4


def _base(folder: Path, dtype: Any, spoiled: bool = False) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.proj.weight": np.asarray(rng.normal(size=(OUT, IN)), dtype) for i in range(2)
    }
    if spoiled:
        tensors["layers.1.proj.weight"][2, 1] = np.nan
        tensors["layers.1.proj.weight"][3, 0] = np.inf
    save_file(tensors, folder / "base.safetensors")
    return folder / "base.safetensors"


def _lora(number: float | None = None, scale: float = 1.0) -> LoRA:
    rng = np.random.default_rng(1)
    a, b = (np.asarray(rng.normal(size=s), np.float32) for s in ((2, IN), (OUT, 2)))
    if number is not None:
        b[4, 1] = number
    return LoRA(a, b, scale)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("update", "count"),
    [
        (_lora(np.nan), IN),
        (_lora(np.inf), IN),
        (_lora(scale=1e39), OUT * IN),
        (_lora(3e38, 10.0), None),
    ],
    ids=["nan", "inf", "scale", "product"],
)
def test_numbers_of_the_mix(update: LoRA, count: int | None, dtype: Any, tmp_path: Path) -> None:
    """The error names the tensor, no output is put in place, and verification fails."""
    base = _base(tmp_path, dtype)
    adapter = jaxmix.Adapter({"layers.0.proj": _lora(), "layers.1.proj": update})
    number = r"\d+" if count is None else count
    text = (
        rf"\Alayers\.1\.proj\.weight: the mix makes {number} numbers NaN or infinite where the "
        r"base's are finite\. Check the adapters' factors and strengths\.\Z"
    )
    with pytest.raises(CheckpointError, match=text):
        merge_checkpoint(base, adapter, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]
    sound = jaxmix.Adapter({"layers.0.proj": _lora(), "layers.1.proj": _lora()})
    merge_checkpoint(base, sound, tmp_path / "out.safetensors")
    proof = verify_merge(base, adapter, tmp_path / "out.safetensors")
    reasons = {
        tensor.tensor: tensor.reason for tensor in proof.tensors if tensor.verdict == "failed"
    }
    assert list(reasons) == ["layers.1.proj.weight"]
    assert (
        "it can't be base plus mix: layers.1.proj.weight: the mix makes"
        in reasons[next(iter(reasons))]
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_numbers_of_the_base_are_kept(dtype: Any, tmp_path: Path) -> None:
    """An additive adapter keeps them in place; an adapter that scales may spread them."""
    base = _base(tmp_path, dtype, spoiled=True)
    for name, update in (("lora", _lora()), ("ia3", IA3(np.full(OUT, 2, np.float32)))):
        adapter = jaxmix.Adapter({"layers.1.proj": update})
        out = tmp_path / f"{name}.safetensors"
        merge_checkpoint(base, adapter, out, verify=True)
        merged = load_file(out)["layers.1.proj.weight"].astype(np.float32)
        assert np.argwhere(~np.isfinite(merged)).tolist() == [[2, 1], [3, 0]]


def test_both_in_one_tensor(tmp_path: Path) -> None:
    """A number that the mix spoils is detected next to one of the base."""
    base = _base(tmp_path, np.float32, spoiled=True)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "layers.1.proj.weight: the mix makes 4 numbers NaN or "
            "infinite where the base's are finite. Check the adapters' "
            "factors and strengths."
        ),
    ):
        adapter = jaxmix.Adapter({"layers.1.proj": _lora(np.nan)})
        merge_checkpoint(base, adapter, tmp_path / "out.safetensors")


def test_replaced_weight_does_not_read_the_base(tmp_path: Path) -> None:
    """At strength 1 the old weight does not matter, even if it is NaN."""
    base = _base(tmp_path, np.float32, spoiled=True)
    weight = np.arange(OUT * IN, dtype=np.float32).reshape(OUT, IN)
    adapter = jaxmix.Adapter({"layers.1.proj": Replace(weight)})
    merge_checkpoint(base, adapter, tmp_path / "out.safetensors", verify=True)
    merged = load_file(tmp_path / "out.safetensors")["layers.1.proj.weight"]
    np.testing.assert_array_equal(merged, weight)


@pytest.mark.parametrize("kernel", [False, True])
def test_replaced_leaf_in_a_tree(kernel: bool) -> None:
    """`compose` does not read it either, in any axis order; the strength keeps its gradient."""
    rng = np.random.default_rng(2)
    base = jnp.asarray(rng.normal(size=(OUT, IN)), jnp.float32).at[2, 1].set(jnp.nan)
    weight = jnp.asarray(rng.normal(size=(OUT, IN)), jnp.float32)
    params: Any = {"proj": {"kernel": base.T}} if kernel else {"proj.weight": base}

    def made(strength: Any) -> Any:
        adapter = jaxmix.Adapter({"proj": Replace(weight)}, strength=strength)
        (leaf,) = jax.tree.leaves(jaxmix.compose(params, adapter))
        return leaf.T if kernel else leaf

    np.testing.assert_array_equal(made(1.0), weight)
    slope = np.asarray(jax.jit(jax.jacfwd(made))(jnp.float32(1)))
    finite = np.isfinite(base)
    np.testing.assert_allclose(slope[finite], (weight - base)[finite], rtol=1e-5)


@pytest.mark.parametrize("kind", ["DoRA", "Normed by output", "Normed by input"])
def test_norm_overflow(kind: str, tmp_path: Path) -> None:
    """The square exceeds float32, so the inverse would be zero: no row of zeros is written."""
    plain = _lora(1e25)
    update: Any = (
        replace(plain, magnitude=np.ones(OUT, np.float32))
        if kind == "DoRA"
        else Normed(
            plain,
            np.ones(OUT if "output" in kind else IN, np.float32),
            axis="out" if "output" in kind else "in",
        )
    )
    base = _base(tmp_path, np.float32)
    text = (
        r"\Alayers\.0\.proj\.weight: the mix makes \d+ numbers NaN or infinite where the base's "
        r"are finite\. Check the adapters' factors and strengths\.\Z"
    )
    with pytest.raises(CheckpointError, match=text):
        merge_checkpoint(
            base, jaxmix.Adapter({"layers.0.proj": update}), tmp_path / "x.safetensors"
        )


def test_rotation_overflow(tmp_path: Path) -> None:
    """Cayley's map squares the generator: an infinite square gives no finite numbers."""
    generator = np.array([[1e38, -0.27, -0.098, 0.108, -0.152, -0.837]], np.float32)
    adapter = jaxmix.Adapter({"layers.0.proj": OFT(generator)})
    with pytest.raises(
        CheckpointError,
        match=full_text(
            "layers.0.proj.weight: the mix makes 24 numbers NaN or "
            "infinite where the base's are finite. Check the adapters' "
            "factors and strengths."
        ),
    ):
        merge_checkpoint(_base(tmp_path, np.float32), adapter, tmp_path / "out.safetensors")
