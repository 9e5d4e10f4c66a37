"""The quantization methods that can be read, by their names in config.json."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Stored
from jaxmix.converters.checkpoints.quantization import awq, bitsandbytes, fp8, gptq, mxfp4
from jaxmix.converters.checkpoints.quantization.packed import Readout, Source, Transposed
from jaxmix.errors import CheckpointError

__all__ = [
    "CONFIGS",
    "PARTS",
    "READERS",
    "SETTINGS_FILES",
    "find_packed",
    "quantization_method",
    "quantization_settings",
    "unpacked",
]

Reader = Callable[[Source, Readout], None]

# The fields of config.json that describe a quantization.
CONFIGS = ("quantization_config", "compression_config")
# A reader for each ``quant_method``. The one for fp8 is called whatever the method's name.
READERS: Mapping[str, Reader] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "mxfp4": mxfp4.read,
}
# Methods that are recognized by their tensors, without a config.
_BY_TENSORS = ("bitsandbytes", "mxfp4")
# Files with the settings in older repositories, and their method.
SETTINGS_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# Names of the tensors in which other methods pack a module's weight.
PARTS = (
    "qweight",
    "weight_packed",
    "weight_qdata",
    "weight._data",
    "W_q",
    "codes",
    "indices",
    "SCB",
    "weight.absmax",
    "weight_blocks",
    "B",
)
# Endings of the names of tensors with codes, whatever their dtype.
_CODES = (".weight", ".qweight", ".weight_packed", ".W_q", "_blocks")
# Models in which these modules are GPT-2's Conv1D (in, out), and linear layers once quantized.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D = {"c_attn", "q_attn", "c_proj", "c_fc"}


def find_packed(checkpoint: Checkpoint) -> Readout:
    """Finds the packed weights of a checkpoint; reads little besides headers.

    Args:
        checkpoint: The base.

    Returns:
        The weights, their parts, and the tensors that can't be unpacked.
    """
    if checkpoint.components:
        return _join({name: find_packed(part) for name, part in checkpoint.components.items()})
    tensors, method = checkpoint.tensors, quantization_method(checkpoint)
    source, readout = Source(tensors, quantization_settings(checkpoint)), Readout()
    for name in _BY_TENSORS if method is None else [method]:
        if name in READERS and name != "fp8":
            READERS[name](source, readout)
    fp8.read(Source(_without_parts(tensors, readout), source.settings), readout)
    if _has_conv1d(checkpoint):
        for name, packed in readout.packed.items():
            is_conv1d = name.removesuffix(".weight").rpartition(".")[2] in _CONV1D
            if is_conv1d and len(packed.shape) == 2:
                readout.packed[name] = Transposed.of(packed)
    for name, tensor in _without_parts(tensors, readout).items():
        if name in readout.packed:
            main = readout.packed[name].main.name
            readout.problems.append(f"{name} is stored both packed, as {main}, and unpacked")
        elif _is_quantized(name, tensor, method):
            readout.problems.append(f"{name} in {tensor.file.name}: {tensor.dtype} {tensor.shape}")
            readout.parts.add(name)
    return readout


def _join(readouts: Mapping[str, Readout]) -> Readout:
    """Joins the readouts of a pipeline's components, and prefixes the tensors' names."""
    joined = Readout()
    for component, readout in readouts.items():
        prefix = f"{component}."
        for name, packed in readout.packed.items():
            joined.packed[prefix + name] = replace(packed, name=prefix + name)
        joined.parts |= {prefix + name for name in readout.parts}
        joined.problems += [prefix + problem for problem in readout.problems]
    return joined


def _is_quantized(name: str, tensor: Stored, method: str | None) -> bool:
    """Whether a tensor that no reader recognized is probably part of a packed weight."""
    # Models use int64 for counters and indices; no method packs into it.
    if tensor.dtype in FLOATS or tensor.dtype in ("BOOL", "I64"):
        return False
    if tensor.dtype.startswith("F") or name.endswith(_CODES):
        return True
    return method is not None


def quantization_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the quantization settings from config.json or an older file; empty if absent.

    Raises:
        CheckpointError: If the field in config.json is not an object.
    """
    config = checkpoint.json(CONFIG_FILE)
    for name in CONFIGS:
        if not isinstance(config.get(name) or {}, dict):
            raise CheckpointError(
                f"{checkpoint.name}: {CONFIG_FILE} has {name} = {str(config[name])[:60]}, expected "
                "an object with quant_method. Download or save it again."
            )
    for part in (config, *config.values()):
        if isinstance(part, dict):
            stated = [part[name] for name in CONFIGS if isinstance(part.get(name), dict)]
            if any(stated):
                return next(filter(None, stated))
    for name, method in {} if checkpoint.is_file else SETTINGS_FILES.items():
        if stated := checkpoint.json(name):
            return {"quant_method": method, **stated}
    return {}


def quantization_method(checkpoint: Checkpoint) -> str | None:
    """Returns the method by which a checkpoint is quantized; None if it states none."""
    if checkpoint.components:
        methods = (quantization_method(part) for part in checkpoint.components.values())
        return ", ".join(dict.fromkeys(filter(None, methods))) or None
    settings = quantization_settings(checkpoint)
    method = settings.get("quant_method") or settings.get("quant_algo")
    if method is None and any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        method = "bitsandbytes"
    return str(method or "an unknown method").lower() if settings else None


def _without_parts(tensors: Mapping[str, Stored], readout: Readout) -> dict[str, Stored]:
    """Returns the tensors that do not belong to a packed weight found so far."""
    return {name: tensor for name, tensor in tensors.items() if name not in readout.parts}


def _has_conv1d(checkpoint: Checkpoint) -> bool:
    """Whether a model has modules whose weights are (in, out) unless they are quantized."""
    config = checkpoint.json(CONFIG_FILE)
    parts = [part for part in (config, *config.values()) if isinstance(part, dict)]
    return any(str(part.get("model_type")) in _CONV1D_MODELS for part in parts)


def unpacked(checkpoint: Checkpoint, readout: Readout) -> dict[str, Stored]:
    """Returns all tensors by name, with packed weights unpacked, without those that can't be read.

    Args:
        checkpoint: The base.
        readout: The result of `find_packed`.
    """
    return _without_parts(checkpoint.tensors, readout) | readout.packed
