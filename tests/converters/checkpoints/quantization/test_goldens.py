"""Packed weights equal the weights unpacked by the quantizations' own libraries, bit for bit."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import Packed, find_packed
from jaxmix.converters.checkpoints.sharded_reading import load_params
from jaxmix.converters.merging import merge_checkpoint, recipe, verify_merge
from jaxmix.errors import LayoutError, UnsupportedError
from jaxmix.families import LoRA

from ....messages import full_text
from .bases import CASES, packed, save, unpacked

BF16 = ml_dtypes.bfloat16
MODULE = "model.layers.0."


def matrix(case: str) -> np.ndarray:
    """Returns the expected weights in float32."""
    return unpacked(case)


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    """Returns all tensors of a folder."""
    return {n: a for f in sorted(folder.glob("*.safetensors")) for n, a in load_file(f).items()}


def name_of(case: str, module: str = MODULE) -> str:
    """Returns the unpacked weight's name."""
    return module + CASES[case]["weight"]


def adapter(case: str) -> jaxmix.Adapter:
    """Returns a LoRA on a case's weight, or on its experts' tensor."""
    shape = unpacked(case).shape
    rng = np.random.default_rng(3)
    site, lead = name_of(case).removesuffix(".weight"), shape[:-2]
    out, width = shape[-2:] if not lead else shape[:-3:-1]
    a, b = (
        jnp.asarray(rng.normal(size=(*lead, *size)), jnp.float32) for size in ((2, width), (out, 2))
    )
    return jaxmix.Adapter({site: LoRA(a, b, 0.5)})


@pytest.mark.parametrize("case", CASES)
def test_runs_of_rows_match(case: str, tmp_path: Path) -> None:
    """Any run of rows equals the library's; runs need not begin at bytes or words."""
    base = save(tmp_path / "base", packed(case, MODULE), CASES[case]["settings"])
    readout = find_packed(read_checkpoint(base))
    weight, expected = readout.packed[name_of(case)], matrix(case)
    assert not readout.problems and isinstance(weight, Packed) and weight.shape == expected.shape
    assert readout.parts >= packed(case, MODULE).keys()
    np.testing.assert_array_equal(weight.read(), expected)
    for start, stop in (
        (0, 1),
        (1, 2),
        (1, len(expected)),
        (len(expected) - 1, len(expected)),
        (2, 2),
    ):
        np.testing.assert_array_equal(weight.rows(slice(start, stop)), expected[start:stop])


@pytest.mark.parametrize(
    "case", ["nf4_nested", "nf4_odd", "int8", "gptq_3_desc_act", "awq", "mxfp4"]
)
def test_merged_weights_are_rounded_once(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights with and without an adapter are rounded once, and verified as proven."""
    monkeypatch.setattr(recipe, "BLOCK", 200)
    other, plain = "model.layers.1.", np.ones((6, 4), np.float16)
    tensors = packed(case, MODULE) | packed(case, other)
    tensors |= {"lm_head.weight": plain, f"{MODULE}proj.bias": plain[0], "model.ids": np.arange(3)}
    settings = CASES[case]["settings"]
    base, out = save(tmp_path / "base", tensors, settings, dtype="float16"), tmp_path / "out"
    if case == "mxfp4":
        merged = merge_checkpoint(base, jaxmix.Adapter({}), out, dequantize=True, verify=True)
    else:
        merged = merge_checkpoint(base, adapter(case), out, dequantize=True, verify=True)
        assert merged.changed == (name_of(case),)
        assert not verify_merge(base, 2 * adapter(case), out, dequantize=True).ok
    assert merged.verified is not None and merged.verified.ok and merged.dequantized == 2
    assert merged.copied == 3
    written, expected = tensors_in(out), matrix(case)
    kept = {"lm_head.weight", f"{MODULE}proj.bias", "model.ids"}
    assert written.keys() == {*kept, name_of(case), name_of(case, other)}
    assert all(np.array_equal(written[name], tensors[name]) for name in kept)
    np.testing.assert_array_equal(written[name_of(case, other)], expected.astype(BF16))
    if case != "mxfp4":
        update: Any = adapter(case).updates[name_of(case).removesuffix(".weight")]
        exact = expected + 0.5 * np.asarray(update.b, np.float64) @ np.asarray(update.a, np.float64)
        errors = np.abs(written[name_of(case)].astype(np.float64) - exact)
        assert (errors <= np.abs(exact) * 2**-8 + 1e-6).all()
    config = json.loads((out / "config.json").read_text())
    assert config == {"model_type": "llama", "dtype": "bfloat16"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_size": sum(a.nbytes for a in written.values()),
        "total_parameters": sum(a.size for a in written.values()),
    }
    assert index["weight_map"] == {
        n: f.name for f in sorted(out.glob("*.safetensors")) for n in load_file(f)
    }


@pytest.mark.parametrize("case", ["nf4", "int8", "gptq_4", "awq", "mxfp4", "fp4_in_bfloat16"])
def test_packed_weights_need_the_option(case: str, tmp_path: Path) -> None:
    """The error names the quantization and the option where an adapter touches a packed weight."""
    tensors = packed(case, MODULE) | {"lm_head.weight": np.ones((6, 4), np.float32)}
    settings = CASES[case]["settings"]
    base = save(tmp_path / "base", tensors, settings)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, adapter(case), tmp_path / "out")
    text, kind = str(caught.value), find_packed(read_checkpoint(base)).packed[name_of(case)].kind
    assert (
        f"(quantized by {settings['quant_method']}): adapters can't be merged into these "
        f"tensors, expected dtypes" in text
    )
    assert f"\n  {name_of(case)} in model-" in text and f": {kind}\nUse dequantize=True" in text
    assert text.endswith(
        "\nUse dequantize=True to write packed weights in bfloat16 and merge into them."
    )
    factor = np.ones((1, 4), np.float32)
    head = jaxmix.Adapter({"lm_head": LoRA(jnp.asarray(factor), jnp.ones((6, 1)), 1.0)})
    merged = merge_checkpoint(base, head, tmp_path / "out")
    assert (merged.copied, merged.dequantized) == (len(tensors) - 1, 0)
    assert (tmp_path / "out" / "config.json").read_text() == (base / "config.json").read_text()


@pytest.mark.parametrize("case", ["nf4_nested", "gptq_3_desc_act", "awq", "mxfp4", "int8"])
def test_readers_use_unpacked_weights(case: str, tmp_path: Path) -> None:
    """Adapter readers and `load_params` read the unpacked weights, never the codes."""
    tensors = packed(case, MODULE) | {"norm.weight": np.ones(3, np.float32)}
    base, expected = save(tmp_path / "base", tensors, CASES[case]["settings"]), matrix(case)
    module = name_of(case).removesuffix(".weight")
    model = base_model(base)
    assert set(model.modules) == {module, "norm"} and model.shape(module) == expected.shape
    np.testing.assert_array_equal(model.weight(module), expected)
    parts = sorted(packed(case, MODULE))
    for names in (None, parts[-1:]):
        lines = "".join(f"\n  {part}" for part in names or parts)
        message = (
            f"{base} is quantized by {CASES[case]['settings']['quant_method']}: these tensors are "
            f"not weights by themselves:{lines}\n"
            "Pass dequantize=True to read the dequantized weights."
        )
        with pytest.raises(UnsupportedError, match=full_text(message)):
            load_params(base, names=names)
    assert load_params(base, names=["norm.weight"]).keys() == {"norm.weight"}
    params = load_params(base, dequantize=True)
    assert params.keys() == {name_of(case), "norm.weight"}
    np.testing.assert_array_equal(np.asarray(params[name_of(case)]), expected.astype(BF16))
    wide = load_params(base, dequantize=True, dtype=np.float32, names=[name_of(case)])
    np.testing.assert_array_equal(np.asarray(wide[name_of(case)]), expected)
