"""The places of quantization settings, and their effects: models, files."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.converters.merging.staged_output import StagedOutput
from jaxmix.errors import CheckpointError, UnsupportedError
from jaxmix.families import LoRA

from ....messages import full_text
from .bases import CASES, packed, read, save, unpacked

BF16 = ml_dtypes.bfloat16
NOTHING = jaxmix.Adapter({})


@pytest.mark.parametrize(
    ("file", "case"), [("quantize_config.json", "gptq_4"), ("quant_config.json", "awq")]
)
def test_settings_in_a_separate_file(file: str, case: str, tmp_path: Path) -> None:
    """Older repositories have them in a separate file, which the output must not keep."""
    base = save(tmp_path / "base", packed(case) | {"z": np.ones(1)}, None)
    (base / file).write_text(json.dumps({"w_bit": 4, "group_size": 16, "version": "GEMM"}))
    if case == "gptq_4":
        (base / file).write_text(json.dumps({"bits": 4, "group_size": 16}))
    merged = merge_checkpoint(base, NOTHING, tmp_path / "out", dequantize=True, verify=True)
    assert merged.left_out == (f"{file}: it describes how the base was quantized",)
    assert not (tmp_path / "out" / file).exists()
    written = load_file(tmp_path / "out" / "model-1.safetensors")
    written |= load_file(tmp_path / "out" / "model-2.safetensors")
    np.testing.assert_array_equal(written["proj.weight"], unpacked(case).astype(BF16))
    factor = np.ones((2, 2), np.float32)
    plain = save(tmp_path / "plain", {"proj.weight": factor, "z": factor}, None)
    (plain / file).write_text("{}")
    assert not merge_checkpoint(plain, NOTHING, tmp_path / "copy", dequantize=True).left_out


@pytest.mark.parametrize("case", ["nf4", "int8", "mxfp4"])
def test_single_file_needs_no_config(case: str, tmp_path: Path) -> None:
    """If the tensors determine everything, no config is needed."""
    file = tmp_path / "base.safetensors"
    save_file(packed(case), file)
    out = tmp_path / "out.safetensors"
    merged = merge_checkpoint(file, NOTHING, out, dequantize=True, verify=True)
    assert merged.dequantized == 1
    expected = {CASES[case]["weight"]: unpacked(case).astype(BF16)}
    written = load_file(out)
    assert written.keys() == expected.keys()
    np.testing.assert_array_equal(*written.values(), *expected.values())


def test_settings_of_a_nested_config(tmp_path: Path) -> None:
    """An image model's config has them, and the dtype, in a part; all parts lose them."""
    settings = CASES["nf4"]["settings"]
    text = {"quantization_config": settings, "dtype": "float16", "a": 1}
    base = save(
        tmp_path / "base", packed("nf4"), settings, text_config=text, torch_dtype="float16", b=[1]
    )
    merge_checkpoint(base, NOTHING, tmp_path / "out", dequantize=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "a": 1},
        "b": [1],
    }


@pytest.mark.parametrize("case", ["nf4", "gptq_4"])
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_conv1d_is_transposed_back(case: str, nested: bool, tmp_path: Path) -> None:
    """Quantizers convert GPT-2's Conv1D to linear layers; checkpoints store it as (in, out)."""
    tensors = {
        name.replace("proj.", f"h.0.attn.{module}."): tensor
        for module in ("c_attn", "other")
        for name, tensor in packed(case).items()
    }
    config = {"model_type": "x", "decoder": {"model_type": "gpt2"}}
    base = save(
        tmp_path / "base",
        tensors,
        CASES[case]["settings"],
        **(config if nested else {"model_type": "gpt2"}),
    )
    expected = unpacked(case)
    assert base_model(base).shape("h.0.attn.c_attn") == expected.T.shape
    np.testing.assert_array_equal(read(base, "h.0.attn.c_attn.weight"), expected.T)
    np.testing.assert_array_equal(read(base, "h.0.attn.other.weight"), expected)
    transposed = find_packed(read_checkpoint(base)).packed["h.0.attn.c_attn.weight"]
    np.testing.assert_array_equal(transposed.rows(slice(3, 7)), expected.T[3:7])


def test_interrupted_dequantization_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge continues with the shards that it had dequantized."""
    tensors = packed("gptq_4", "a.") | packed("gptq_4", "b.") | packed("gptq_4", "c.")
    base = save(tmp_path / "base", tensors, CASES["gptq_4"]["settings"])
    finish, finished = StagedOutput.finish_shard, []

    def failing(self: StagedOutput, number: int, *args: Any) -> None:
        if finished:
            raise OSError("no more")
        finished.append(number)
        finish(self, number, *args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(StagedOutput, "finish_shard", failing)
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"the output {tmp_path}/out could not be written: no more. 1 of 2 "
                f"shards are complete in {tmp_path}/out.partial. Use resume=True to "
                "continue from there."
            ),
        ):
            merge_checkpoint(base, NOTHING, out, dequantize=True)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/out.partial belongs to another merge, which can't be "
            "resumed. Different: the base's tensors, the changed side "
            "files. Merge with the same arguments as before, or use "
            "force=True without resume=True to start over."
        ),
    ):
        merge_checkpoint(base, NOTHING, out, resume=True)
    merged = merge_checkpoint(base, NOTHING, out, dequantize=True, resume=True, verify=True)
    assert merged.resumed == 1 and merged.verified is not None and merged.verified.ok
    written = {n: a for file in out.glob("*.safetensors") for n, a in load_file(file).items()}
    for name in "abc":
        expected = unpacked("gptq_4").astype(BF16)
        np.testing.assert_array_equal(written.pop(f"{name}.proj.weight"), expected)
    assert not written


def test_packed_head_is_not_tied(tmp_path: Path) -> None:
    """If the head is packed in tensors of other names, the embedding may change alone."""
    wide = np.ones((96, 64), np.float32)
    tensors = packed("gptq_4", "lm_head.") | {"model.embed_tokens.weight": wide}
    tensors = {name.replace("lm_head.proj", "lm_head"): tensor for name, tensor in tensors.items()}
    base = save(tmp_path / "base", tensors, CASES["gptq_4"]["settings"])
    factors = jnp.ones((1, 64)), jnp.ones((96, 1))
    lora = jaxmix.Adapter({"model.embed_tokens": LoRA(*factors, 1.0)})
    merged = merge_checkpoint(base, lora, tmp_path / "out", dequantize=True)
    assert merged.untied is None and merged.changed == ("model.embed_tokens.weight",)
    written = {
        n: a for f in (tmp_path / "out").glob("*.safetensors") for n, a in load_file(f).items()
    }
    assert written.keys() == {"lm_head.weight", "model.embed_tokens.weight"}


def test_codes_without_a_reader_are_not_weights(tmp_path: Path) -> None:
    """`base=` and `load_params` do not use the codes of unsupported methods as weights."""
    from jaxmix.converters.checkpoints.sharded_reading import load_params

    tensors = {"a.weight": np.ones((2, 2), np.int8), "a.weight_scales": np.ones(2, np.float32)}
    base = save(tmp_path / "base", tensors, {"quant_method": "eetq"})
    model = base_model(base)
    assert "a" in model.modules
    for get in (model.weight, model.shape):
        with pytest.raises(CheckpointError) as refused:
            get("a")
        assert str(refused.value) == (
            f"the adapter needs the weight of a, which can't be read from {base}, with weights "
            "packed by eetq. Use the unquantized checkpoint."
        )
    for dequantize in (False, True):
        with pytest.raises(UnsupportedError) as caught:
            load_params(base, dequantize=dequantize)
        text = str(caught.value)
        assert "is quantized by eetq: these tensors are not weights by themselves:" in text
        assert "a.weight" in text and text.endswith("Use the unquantized checkpoint.")


@pytest.mark.parametrize("value", [["fp8"], "fp8", 8, [{"quant_method": "fp8"}]])
def test_settings_must_be_an_object(value: Any, tmp_path: Path) -> None:
    """Nothing is dequantized by guessing."""
    base = save(tmp_path / "base", packed("gptq_4"), {"quant_method": "gptq", "bits": 4})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": value}))
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(base, NOTHING, tmp_path / "out", dequantize=True)
    text = str(caught.value)
    assert f"{base}: config.json has quantization_config = {value}, expected an object" in text
    assert "with quant_method. Download or save it again." in text
