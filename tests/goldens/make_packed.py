"""Writes ``packed.zip``: small packed weights, and how the quantization libraries unpack them.

    python -m tests.goldens.make_packed

It needs torch, transformers, bitsandbytes, and the folders of auto-gptq 0.7 and autoawq 0.2 on the
path. Only single files of the last two are run, because the packages no longer import next to
current transformers.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .archive import pack

__all__ = ["main"]

Case = tuple[dict[str, Any], dict[str, Any], str, torch.Tensor]


def _loaded(package: str, file: str) -> Any:
    """Runs one file of a package without importing the package."""
    home = importlib.util.find_spec(package)
    assert home is not None and home.origin is not None
    spec = importlib.util.spec_from_file_location(Path(file).stem, Path(home.origin).parent / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _bitsandbytes() -> dict[str, Case]:
    import bitsandbytes.functional as bnb  # pyright: ignore[reportMissingImports]

    cases: dict[str, Case] = {}
    for name, kind, dtype, shape, nested, storage in (
        ("nf4", "nf4", torch.bfloat16, (12, 64), False, torch.uint8),
        ("nf4_nested", "nf4", torch.float16, (270, 64), True, torch.uint8),
        ("nf4_odd", "nf4", torch.float16, (15, 33), False, torch.uint8),
        ("fp4_nested", "fp4", torch.float32, (12, 64), True, torch.uint8),
        ("fp4_in_bfloat16", "fp4", torch.bfloat16, (6, 128), False, torch.bfloat16),
    ):
        weight = torch.randn(shape).to(dtype) * torch.rand(shape[0], 1).to(dtype)
        codes, state = bnb.quantize_4bit(
            weight, blocksize=64, quant_type=kind, compress_statistics=nested, quant_storage=storage
        )
        parts = {f"proj.weight.{key}": part for key, part in state.as_dict(packed=True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        tensors = {"proj.weight": codes, **parts}
        cases[name] = settings, tensors, "proj.weight", bnb.dequantize_4bit(codes, state)
    codes, scale, _ = bnb.int8_vectorwise_quant(torch.randn(12, 20).half())
    layout = torch.tensor(0, dtype=torch.uint8)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    tensors = {"proj.weight": codes, "proj.SCB": scale, "proj.weight_format": layout}
    expected = bnb.int8_vectorwise_dequant(codes, scale)
    return {**cases, "int8": (settings, tensors, "proj.weight", expected)}


def _gptq() -> dict[str, Case]:
    linear = _loaded("auto_gptq", "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    cases: dict[str, Case] = {}
    for bits in (2, 3, 4, 8):
        for name, groups in (("", torch.arange(64) // 16), ("_desc_act", torch.randperm(64) // 16)):
            source = torch.nn.Linear(64, 96, bias=False).half()
            layer = linear(bits, 16, 64, 96, False, weight_dtype=torch.float16)
            zeros = torch.randint(1, 2**bits, (96, 4)).half()
            scales = (torch.rand(96, 4) * 0.1 + 0.01).half()
            # The codes are clamped to the range, as in a quantizer.
            codes = torch.randint(0, 2**bits, (96, 64)).half()
            source.weight.data = scales[:, groups] * (codes - zeros[:, groups])
            layer.pack(source, scales, zeros, groups.to(torch.int32))
            expected = layer(torch.eye(64, dtype=torch.float16)).T
            settings = {"quant_method": "gptq", "bits": bits, "group_size": 16}
            tensors = {f"proj.{key}": part for key, part in layer.state_dict().items()}
            cases[f"gptq_{bits}{name}"] = settings, tensors, "proj.weight", expected
    return cases


def _awq() -> dict[str, Case]:
    unpack = _loaded("awq", "utils/packing_utils.py").dequantize_gemm
    limits = torch.iinfo(torch.int32)
    codes, zeros = (
        torch.randint(limits.min, limits.max, shape, dtype=torch.int32)
        for shape in ((32, 5), (4, 5))
    )
    scales = (torch.rand(4, 40) * 0.1).half()
    tensors = {"proj.qweight": codes, "proj.qzeros": zeros, "proj.scales": scales}
    settings = {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"}
    return {"awq": (settings, tensors, "proj.weight", unpack(codes, zeros, scales, 4, 8).T)}


def _mxfp4() -> dict[str, Case]:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8)
    scales = torch.randint(96, 140, (3, 10, 2), dtype=torch.uint8)
    scales[0, 0] = torch.tensor([0, 251], dtype=torch.uint8)
    tensors = {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}
    expected = convert_moe_packed_tensors(blocks, scales)
    return {"mxfp4": ({"quant_method": "mxfp4"}, tensors, "experts.down_proj", expected)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Returns a tensor as a NumPy array; bfloat16 has the dtype of ml_dtypes."""
    from ml_dtypes import bfloat16

    tensor = tensor.detach().contiguous()
    is_half = tensor.dtype == torch.bfloat16
    return tensor.view(torch.int16).numpy().view(bfloat16) if is_half else tensor.numpy()


def main() -> None:
    """Writes the golden."""
    torch.manual_seed(0)
    cases = {**_bitsandbytes(), **_gptq(), **_awq(), **_mxfp4()}
    records = {
        name: {"settings": settings, "weight": weight}
        for name, (settings, _, weight, _) in cases.items()
    }
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for name, (_, parts, _, expected) in cases.items():
        tensors[f"{name}/packed"] = {key: _array(part) for key, part in parts.items()}
        tensors[f"{name}/unpacked"] = {"": expected.detach().float().numpy()}
    with tempfile.TemporaryDirectory() as empty:
        size = pack("packed", {"cases": records}, tensors, Path(empty))
    print(f"packed.zip: {len(cases)} cases, {size:,} bytes")


if __name__ == "__main__":
    main()
