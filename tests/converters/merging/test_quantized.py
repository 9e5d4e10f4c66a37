"""fp8 bases, dequantized on request, and bases of other quantization methods, refused."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import merge_checkpoint, recipe, verify_merge
from jaxmix.errors import LayoutError
from jaxmix.families import LoRA

from ...messages import full_text

BF16, E4, E5 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
SHAPE = (5, 7)
SITE = "model.layers.0.proj"
METHOD = {"quant_method": "fp8", "weight_block_size": [2, 3]}


def lora(site: str = SITE) -> jaxmix.Adapter:
    """An adapter for one site."""
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 7), (5, 2)))
    return jaxmix.Adapter({site: LoRA(a, b, 0.5)})


def save(
    folder: Path, tensors: dict[str, Any], method: dict[str, Any] | None = METHOD, **config: Any
) -> Path:
    """A base in two shards, with scales and weights in different ones."""
    folder.mkdir()
    fields = {"model_type": "x", **config, **({"quantization_config": method} if method else {})}
    (folder / "config.json").write_text(json.dumps(fields))
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, part in parts.items() for name in part}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def codes(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """fp8 numbers."""
    return np.asarray(np.random.default_rng(0).normal(size=shape) * 3, dtype)


def by_blocks(q: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The values, computed one by one in float64."""
    out = np.empty(q.shape)
    for index in np.ndindex(q.shape):
        out[index] = float(q[index]) * float(scale[index[0] // block[0], index[1] // block[1]])
    return out


def scales(kind: str) -> tuple[str, np.ndarray, tuple[int, int]]:
    """The name's ending, the scale, and the number of weights per scale."""
    rng = np.random.default_rng(2)
    name, shape, block = {
        "blocks": ("weight_scale_inv", (3, 3), (2, 3)),
        "one": ("weight_scale", (1, 1), SHAPE),
        "rows": ("weight_scale", (5, 1), (1, 7)),
        "rows in bfloat16": ("weight_scale", (5, 1), (1, 7)),
    }[kind]
    scale = np.asarray(rng.uniform(0.5, 2, size=shape), np.float32)
    return name, scale.astype(BF16) if "bf" in kind else scale, block


@pytest.mark.parametrize("run", [1000, 14])
@pytest.mark.parametrize("dtype", [E4, E5])
@pytest.mark.parametrize("kind", ["blocks", "one", "rows", "rows in bfloat16"])
def test_dequantized(
    kind: str, dtype: Any, run: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole model in bfloat16, rounded once; scales and the config's fields are removed."""
    monkeypatch.setattr(recipe, "BLOCK", run)
    end, scale, block = scales(kind)
    q, norm = codes(dtype), np.ones(7, np.float32)
    tensors = {"model.norm.weight": norm, "model.other.bias": norm}
    for site in (SITE, "model.layers.0.other"):
        stored = scale.reshape(()) if kind == "one" and site == SITE else scale
        tensors |= {f"{site}.weight": q, f"{site}.{end}": stored, f"{site}.input_scale": norm[:1]}
    base, out = save(tmp_path / "base", tensors, torch_dtype="float16"), tmp_path / "out"
    merged = merge_checkpoint(base, lora(), out, dequantize=True, verify=True)
    written = {n: a for f in sorted(out.glob("*.safetensors")) for n, a in load_file(f).items()}
    assert written.keys() == {n for n in tensors if not n.endswith(("_scale", "_scale_inv"))}
    values = by_blocks(q, scale, block)
    assert np.array_equal(
        written["model.layers.0.other.weight"], values.astype(np.float32).astype(BF16)
    )
    update: Any = lora().updates[SITE]
    exact = values + 0.5 * np.asarray(update.b, np.float64) @ np.asarray(update.a, np.float64)
    errors = np.abs(written[f"{SITE}.weight"].astype(np.float64) - exact)
    assert (errors <= np.abs(exact) * 2**-8 + 1e-6).all()
    config = json.loads((out / "config.json").read_text())
    assert config == {"model_type": "x", "torch_dtype": "bfloat16"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in written.values())
    assert index["weight_map"] == {
        n: f.name for f in sorted(out.glob("*.safetensors")) for n in load_file(f)
    }
    assert (merged.dequantized, merged.copied, merged.changed) == (2, 2, (f"{SITE}.weight",))
    assert merged.rounding is not None and merged.rounding.tensors.keys() == {f"{SITE}.weight"}
    assert merged.verified is not None and merged.verified.ok
    assert not verify_merge(base, 2 * lora(), out, dequantize=True).ok


def test_experts_and_casts(tmp_path: Path) -> None:
    """Experts in one tensor, each with its blocks, and a plain cast, as in image models."""
    q = codes(E4, (2, 5, 7))
    scale = np.asarray(np.random.default_rng(3).uniform(1, 2, size=(2, 3, 3)), np.float32)
    save(
        tmp_path / "1",
        {
            "experts.up": q,
            "experts.up_scale_inv": scale,
            f"{SITE}.weight": q[0],
            f"{SITE}.weight_scale": scale[0, 0, :1],
        },
    )
    merge_checkpoint(tmp_path / "1", lora(), tmp_path / "2", dequantize=True)
    written = load_file(tmp_path / "2" / "model-1.safetensors") | load_file(
        tmp_path / "2" / "model-2.safetensors"
    )
    for expert in range(2):
        values = by_blocks(q[expert], scale[expert], (2, 3)).astype(np.float32)
        assert np.array_equal(written["experts.up"][expert], values.astype(BF16))
    save(tmp_path / "3", {f"{SITE}.weight": q[0], "experts.up": q}, None)
    merge_checkpoint(tmp_path / "3", lora(), tmp_path / "4", dequantize=True)
    merged = load_file(tmp_path / "4" / "model-1.safetensors")["experts.up"]
    assert np.array_equal(merged, q.astype(np.float32).astype(BF16))


def test_text_models_of_image_models(tmp_path: Path) -> None:
    """Their config has the setting in a part."""
    tensors = {
        f"{SITE}.weight": codes(E4),
        f"{SITE}.weight_scale": np.ones(1, np.float32),
        "z": np.ones(1),
    }
    text = {"quantization_config": METHOD, "a": 1}
    save(tmp_path / "base", tensors, None, text_config=text)
    merge_checkpoint(tmp_path / "base", lora(), tmp_path / "out", dequantize=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "x", "text_config": {"a": 1}}


def test_fp8_needs_the_option(tmp_path: Path) -> None:
    """Where an adapter touches it, the option is required; otherwise it is copied."""
    tensors = {
        f"{SITE}.weight": codes(E4),
        f"{SITE}.weight_scale_inv": np.ones((3, 3), np.float32),
        "head.weight": np.ones(SHAPE, np.float32),
    }
    base = save(tmp_path / "base", tensors)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out")
    text = str(caught.value)
    assert "(quantized by fp8): adapters can't be merged into these tensors, expected " in text
    assert f"{SITE}.weight in model-2.safetensors: F8_E4M3\nUse dequantize=True" in text
    assert text.endswith(
        "\nUse dequantize=True to write packed weights in bfloat16 and merge into them."
    )
    merged = merge_checkpoint(base, lora("head"), tmp_path / "out")
    assert (merged.copied, merged.dequantized) == (2, 0)
    assert (tmp_path / "out" / "config.json").read_text() == (base / "config.json").read_text()


def test_dequantize_without_quantized_tensors(tmp_path: Path) -> None:
    """It has no effect, and a config that names a method stays unchanged."""
    base = save(tmp_path / "base", {f"{SITE}.weight": np.ones(SHAPE, np.float32), "z": np.ones(1)})
    merged = merge_checkpoint(base, lora(), tmp_path / "out", dequantize=True)
    assert merged.dequantized == 0
    assert (tmp_path / "out" / "config.json").read_text() == (base / "config.json").read_text()


@pytest.mark.parametrize("kind", ["F8_E8M0", "U8"])
@pytest.mark.parametrize("shape", [(), (5, 1), (3, 3)])
def test_scales_that_are_powers_of_two(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """They are floats of exponents only, or bytes, of which 127 is 1, as in transformers."""
    exponents = np.asarray(np.random.default_rng(4).integers(120, 134, shape), np.uint8)
    stored = exponents.view(ml_dtypes.float8_e8m0fnu) if kind == "F8_E8M0" else exponents
    q = codes(E4)
    tensors = {f"{SITE}.weight": q, f"{SITE}.weight_scale_inv": stored, "z": np.ones(1)}
    base = save(tmp_path / "base", tensors)
    merged = merge_checkpoint(base, jaxmix.Adapter({}), tmp_path / "out", dequantize=True)
    assert merged.dequantized == 1
    scale = np.exp2(exponents.astype(np.float64) - 127)
    if shape == (3, 3):
        scale = np.repeat(np.repeat(scale, 2, 0), 3, 1)[:5, :7]
    written = load_file(tmp_path / "out" / "model-1.safetensors") | load_file(
        tmp_path / "out" / "model-2.safetensors"
    )
    assert written.keys() == {f"{SITE}.weight", "z"}
    expected = (q.astype(np.float64) * scale).astype(np.float32).astype(BF16)
    np.testing.assert_array_equal(written[f"{SITE}.weight"], expected)


def test_block_size_differs_from_the_config(tmp_path: Path) -> None:
    """Experts have their own blocks; a grid that divides the weight determines the size."""
    q, scale = (
        codes(E4, (6, 8)),
        np.asarray([[1, 2, 4, 8], [2, 4, 8, 16], [3, 5, 7, 9]], np.float32),
    )
    base = save(tmp_path / "base", {"e.weight": q, "e.weight_scale_inv": scale, "z": np.ones(1)})
    merge_checkpoint(base, jaxmix.Adapter({}), tmp_path / "out", dequantize=True)
    merged = load_file(tmp_path / "out" / "model-1.safetensors")["e.weight"]
    np.testing.assert_array_equal(
        merged, by_blocks(q, scale, (2, 2)).astype(np.float32).astype(BF16)
    )


@pytest.mark.parametrize(
    ("scale", "method", "text"),
    [
        (None, {}, f"{SITE}.weight_scale_inv and {SITE}.weight_scale are missing"),
        (np.ones((2, 3), np.float32), {}, f"{SITE}.weight_scale has shape (2, 3), blocks (2, 3)"),
        (np.ones((1, 1, 5), np.float32), {}, f"{SITE}.weight_scale has shape (1, 1, 5)"),
        (np.ones((3, 3), np.int32), {}, f"{SITE}.weight_scale is I32"),
        *[
            (
                np.ones((2, 3), np.float32),
                {"weight_block_size": size},
                f"{SITE}.weight_scale has shape (2, 3), blocks {text}",
            )
            for size, text in (
                (None, "(128, 128)"),
                ([2], "(1, 2)"),
                ([10**9, 10**9], "(1000000000, 1000000000)"),
                ([2**70, 2**70], f"({2**70}, {2**70})"),
            )
        ],
        *[
            (
                np.ones((3, 3), np.float32),
                {"weight_block_size": size},
                f"weight_block_size is {size!r}, expected a positive integer for each axis",
            )
            for size in (
                *("x", "128", 7, 1e9, -1, True, {}, {"a": 1}, [], [0, 0], [0, 3], [2, -1]),
                *([1, 2, 3], [2.0, 3], [1e9, 1e9], [True, 3], [[1, 2]], [None, 3], ["2", 3]),
            )
        ],
    ],
)
def test_scales_that_do_not_fit(
    scale: Any, method: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """All are listed, and nothing is written."""
    tensors: dict[str, Any] = {f"{SITE}.weight": codes(E4), "z": np.ones(1)}
    if scale is not None:
        tensors[f"{SITE}.weight_scale"] = scale
    base = save(tmp_path / "base", tensors, METHOD | method)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out", dequantize=True)
    message = str(caught.value)
    assert "(quantized by fp8): tensors that can't be dequantized:" in message
    assert f"{SITE}.weight (5, 7): {text}" in message
    assert message.endswith(
        "Download or save the checkpoint again, or merge into the unquantized model."
    )
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("settings", [METHOD, None])
def test_other_8_bit_floats(settings: Any, tmp_path: Path) -> None:
    """No tensor stays quantized if the config no longer says so."""
    exponents = np.ones(SHAPE, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    tensors = {"odd.weight": exponents, f"{SITE}.weight": codes(E4), "z": np.ones(1)}
    tensors |= {f"{SITE}.weight_scale": np.ones((), np.float32)}
    base = save(tmp_path / "base", tensors, settings)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out", dequantize=True)
    assert "odd.weight in model-1.safetensors: F8_E8M0 (5, 7)" in str(caught.value)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out")
    text = str(caught.value)
    assert f"{SITE}.weight in model" in text
    assert "Other packed tensors can't be dequantized:" in text and "odd.weight in model" in text


OTHERS = [
    ("hqq", "W_q", np.uint8),
    ("aqlm", "codes", np.int16),
    ("eetq", "weight", np.int8),
    ("compressed-tensors", "weight_packed", np.int32),
    ("torchao", "weight_qdata", np.int8),
    ("quanto", "weight._data", np.int8),
    ("vptq", "indices", np.int32),
    ("auto-round", "qweight", np.int32),
    ("bitnet", "weight", np.uint8),
]


@pytest.mark.parametrize(("method", "part", "dtype"), OTHERS)
def test_other_methods(method: str, part: str, dtype: Any, tmp_path: Path) -> None:
    """The error names the method and a remedy; untouched tensors are copied."""
    packed = f"{SITE}.{part}"
    tensors = {packed: np.ones(SHAPE, dtype), "head.weight": np.ones(SHAPE, np.float32)}
    base = save(tmp_path / "base", tensors, {"quant_method": method})
    end = (
        f"dequantize=True reads awq, bitsandbytes, fp8, gptq, mxfp4, not {method}. Load the model "
        "in transformers, call model.dequantize() and save it; or merge into the unquantized "
        "model, and quantize the result."
    )
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out")
    text = str(caught.value)
    assert (
        f"(quantized by {method}): adapters can't be merged into these tensors, expected dtypes"
        in text
    )
    assert f"{packed} in model-2.safetensors: " in text and text.endswith(end)
    for adapter in (lora(), lora("head")):
        with pytest.raises(LayoutError) as caught:
            merge_checkpoint(base, adapter, tmp_path / "out", dequantize=True)
        text = str(caught.value)
        assert f"(quantized by {method}): tensors that can't be dequantized:" in text
        assert f"{packed} in model-2.safetensors: " in text and text.endswith(end)
    assert not list(tmp_path.glob("out*"))
    assert merge_checkpoint(base, lora("head"), tmp_path / "out").copied == 1


def test_method_without_a_name(tmp_path: Path) -> None:
    """The error says that the config names no method."""
    tensors = {f"{SITE}.weight": np.ones(SHAPE, np.int8), "z": np.ones(1)}
    base = save(tmp_path / "base", tensors, {"bits": 8})
    with pytest.raises(
        LayoutError,
        match=full_text(
            f"{tmp_path}/base (quantized by an unknown method): adapters can't "
            "be merged into these tensors, expected dtypes F64, F32, "
            "F16, BF16:\n"
            "  model.layers.0.proj.weight in model-1.safetensors: I8\n"
            "dequantize=True reads awq, bitsandbytes, fp8, gptq, mxfp4, "
            "not an unknown method. Load the model in transformers, call "
            "model.dequantize() and save it; or merge into the "
            "unquantized model, and quantize the result."
        ),
    ):
        merge_checkpoint(base, lora(), tmp_path / "out")


def test_integers_without_a_method(tmp_path: Path) -> None:
    """Codes are not guessed if no config names a method."""
    tensors = {f"{SITE}.qweight": np.ones(SHAPE, np.int32), "z": np.ones(1)}
    base = save(tmp_path / "base", tensors, None)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, lora(), tmp_path / "out", dequantize=True)
    assert "gptq, mxfp4, but config.json names no method." in str(caught.value)


@pytest.mark.parametrize("shape", [(1,), (3, 3)])
def test_infinite_scales(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Numbers that are infinite in transformers are infinite, without a NumPy warning."""
    tensors = {f"{SITE}.weight": codes(E4), f"{SITE}.weight_scale_inv": np.full(shape, 3e38)}
    tensors[f"{SITE}.weight_scale_inv"] = tensors[f"{SITE}.weight_scale_inv"].astype(np.float32)
    base = save(tmp_path / "base", tensors)
    merge_checkpoint(base, [], tmp_path / "out", dequantize=True)
    shards = (tmp_path / "out").glob("*.safetensors")
    merged = {name: x for file in shards for name, x in load_file(file).items()}[f"{SITE}.weight"]
    large = np.abs(codes(E4).astype(np.float64) * 3e38) > 3.4e38
    assert large.any() and np.array_equal(~np.isfinite(merged.astype(np.float32)), large)
