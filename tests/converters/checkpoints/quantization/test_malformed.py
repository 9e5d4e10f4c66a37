"""Packed weights that are damaged, incomplete or of an unsupported kind: the error names each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmix
from jaxmix.converters.checkpoints.huggingface import read_checkpoint
from jaxmix.converters.checkpoints.quantization import find_packed
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import LayoutError

from .bases import CASES, packed, save

Tensors = dict[str, Any]
Change = Callable[[Tensors], object]
STATE = "proj.weight.quant_state.bitsandbytes__nf4"


def without(*names: str) -> Change:
    """Returns a change that removes tensors."""
    return lambda tensors: [tensors.pop(name) for name in names]


def having(**new: Any) -> Change:
    """Returns a change that replaces tensors, by the last parts of their names."""

    def change(tensors: Tensors) -> None:
        for end, value in new.items():
            (name,) = [name for name in tensors if name.endswith(end)]
            tensors[name] = value

    return change


def state(raw: bytes | None = None, **fields: Any) -> Change:
    """Returns a change of the JSON next to four-bit weights of bitsandbytes."""

    def change(tensors: Tensors) -> None:
        (name,) = [name for name in tensors if ".quant_state." in name]
        record = json.loads(tensors[name].tobytes()) | fields
        data = json.dumps(record).encode() if raw is None else raw
        tensors[name] = np.frombuffer(data, np.uint8)

    return change


def renamed(old: str, new: str) -> Change:
    """Returns a change of a tensor's name."""
    return lambda tensors: tensors.update({new: tensors.pop(old)})


I32, F16, U8 = np.int32, np.float16, np.uint8
WRONG: list[tuple[str, Change, dict[str, Any], str]] = [
    ("nf4", without("proj.weight"), {}, "proj.weight: proj.weight is missing"),
    ("nf4", without("proj.weight.absmax"), {}, "proj.weight: proj.weight.absmax is missing"),
    (
        "nf4",
        renamed(STATE, STATE.replace("nf4", "af4")),
        {},
        "proj.weight: its quantization is af4, expected nf4 or fp4",
    ),
    ("nf4", state(b"{"), {}, f"{STATE} is not a JSON object of at most 16384 bytes"),
    ("nf4", state(b"[" * 9000), {}, f"{STATE} is not a JSON object of at most 16384 bytes"),
    ("nf4", state(b"[1]"), {}, f"{STATE} is not a JSON object of at most 16384 bytes"),
    ("nf4", state(b" " * 16385), {}, f"{STATE} is not a JSON object of at most 16384 bytes"),
    ("nf4", state(shape=None), {}, f"{STATE} has shape None, expected a list of sizes"),
    ("nf4", state(shape=[12, -64]), {}, f"{STATE} has shape [12, -64], expected a list of sizes"),
    ("nf4", state(shape=[True, 64]), {}, f"{STATE} has shape [True, 64], expected a list of si"),
    ("nf4", state(shape=[1 << 99, 1]), {}, "expected a list of sizes"),
    (
        "nf4",
        state(shape=[12, 65]),
        {},
        "proj.weight has 384 bytes, expected 390 for shape (12, 65)",
    ),
    (
        "nf4",
        state(blocksize=0),
        {},
        f"{STATE} has blocksize 0 and dtype 'bfloat16', expected a positive integer and one of fl",
    ),
    ("nf4", state(dtype="int8"), {}, f"{STATE} has blocksize 64 and dtype 'int8', expected a pos"),
    ("nf4", state(blocksize=32), {}, "proj.weight.absmax has shape (12,), expected (24,)"),
    ("nf4", having(absmax=np.ones(12, U8)), {}, "proj.weight.absmax is U8, expected F32"),
    (
        "nf4_nested",
        without("proj.weight.nested_quant_map"),
        {},
        "proj.weight.nested_quant_map is missing, or does not have 256 floats",
    ),
    (
        "nf4_nested",
        having(nested_quant_map=np.ones(255, np.float32)),
        {},
        "proj.weight.nested_quant_map is missing, or does not have 256 floats",
    ),
    (
        "nf4_nested",
        state(nested_offset="x"),
        {},
        "proj.weight: nested_blocksize is 256 and nested_offset 'x', expected numbers",
    ),
    (
        "nf4_nested",
        state(nested_blocksize=128),
        {},
        "proj.weight.nested_absmax is F32 (2,), expected F32 (3,)",
    ),
    (
        "nf4_nested",
        having(**{".weight.absmax": np.ones(270, np.float32)}),
        {},
        "proj.weight.absmax is F32, expected U8",
    ),
    (
        "int8",
        having(SCB=np.ones(13, np.float32)),
        {},
        "proj.weight (12, 20): proj.SCB is F32 (13,), expected a float for each row",
    ),
    (
        "int8",
        having(weight_format=np.ones((), U8)),
        {},
        "proj.weight: proj.weight_format is not 0; only the layout by rows can be read",
    ),
    ("int8", without("proj.SCB"), {}, "proj.weight in model-1.safetensors: I8 (12, 20)"),
    ("gptq_4", without("proj.qzeros"), {}, "proj: proj.qzeros is missing"),
    ("gptq_4", without("proj.scales"), {}, "proj: proj.scales is missing"),
    (
        "gptq_4",
        lambda tensors: tensors.update({"proj.weight": np.ones((96, 64), F16)}),
        {},
        "proj.weight is stored both packed, as proj.qweight, and unpacked",
    ),
    (
        "gptq_4",
        lambda tensors: tensors.update({"marlin.B": np.ones((4, 64), I32)}),
        {},
        "marlin.B in model-1.safetensors: I32 (4, 64)",
    ),
    (
        "gptq_4",
        having(qweight=np.ones((8, 96), np.int16)),
        {},
        "proj: proj.qweight is I16 (8, 96); expected matrices of I32 and of floats",
    ),
    (
        "gptq_4",
        having(qzeros=np.ones((4, 15), I32)),
        {},
        "proj: qweight (8, 96), qzeros (4, 15), scales (4, 96) are not codes of 2, 3, 4 or 8 bits",
    ),
    (
        "gptq_4",
        having(scales=np.ones((4, 95), F16)),
        {},
        "proj: qweight (8, 96), qzeros (4, 12), scales (4, 95) do not fit each other",
    ),
    (
        "gptq_4",
        lambda t: (
            having(scales=np.ones((65, 96), F16), qzeros=np.ones((65, 12), I32))(t),
            t.pop("proj.g_idx"),
        ),
        {},
        "proj: qweight (8, 96), qzeros (65, 12), scales (65, 96) do not fit each other",
    ),
    ("gptq_4", having(g_idx=np.ones(63, I32)), {}, "proj.g_idx is I32 (63,), expected I32 (64,)"),
    (
        "gptq_4",
        lambda t: None,
        {"checkpoint_format": "marlin"},
        "proj: checkpoint_format is 'marlin', expected gptq or gptq_v2",
    ),
    ("awq", without("proj.scales"), {}, "proj: proj.scales is missing"),
    ("awq", without("proj.qzeros"), {}, "proj: proj.qzeros is missing"),
    ("awq", lambda t: None, {"version": "gemv"}, "proj: the AWQ version is 'gemv', expected gemm"),
    ("awq", lambda t: None, {"backend": "llm-awq"}, "proj: the AWQ version is 'llm-awq', expected"),
    ("awq", lambda t: None, {"bits": 3}, "proj: AWQ with 3 bits, expected 4"),
    (
        "awq",
        having(scales=np.ones((5, 40), F16)),
        {},
        "proj: proj.qweight is I32 (32, 5), proj.qzeros is I32 (4, 5), proj.scales is F16 (5, 40); "
        "expected I32 (in, out/8), I32 (groups, out/8), F16 (groups, out)",
    ),
    (
        "mxfp4",
        without("experts.down_proj_scales"),
        {},
        "experts.down_proj_blocks (3, 10, 2, 16): experts.down_proj_scales is missing",
    ),
    (
        "mxfp4",
        having(_scales=np.ones((3, 10, 1), U8)),
        {},
        "experts.down_proj_blocks (3, 10, 2, 16): experts.down_proj_scales is U8 (3, 10, 1), "
        "expected blocks (experts, out, groups, bytes) and scales U8 (experts, out, groups)",
    ),
]


@pytest.mark.parametrize(("case", "change", "settings", "text"), WRONG)
def test_malformed_weights_are_refused(
    case: str, change: Change, settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """The problem is reported before anything is written, even next to a valid weight."""
    tensors = packed(case)
    change(tensors)
    tensors |= {"zz.weight": np.ones((2, 2), np.float32)} | packed(case, "sound.")
    base = save(tmp_path / "base", tensors, CASES[case]["settings"] | settings)
    with pytest.raises(LayoutError) as caught:
        merge_checkpoint(base, jaxmix.Adapter({}), tmp_path / "out", dequantize=True)
    message = str(caught.value)
    assert "tensors that can't be dequantized:" in message and text in message
    assert message.endswith(
        "Download or save the checkpoint again, or merge into the unquantized model."
    )
    assert not list(tmp_path.glob("out*"))


def test_unchanged_case_is_accepted(tmp_path: Path) -> None:
    """The changes above are the reason for the refusals."""
    for case, (settings) in ((case, CASES[case]["settings"]) for case, *_ in WRONG):
        base = save(tmp_path / f"{case}{len(list(tmp_path.iterdir()))}", packed(case), settings)
        assert not find_packed(read_checkpoint(base)).problems
