"""The quantizations that can be read, by the name that config.json has for them."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxmix.converters.checkpoints.huggingface import CONFIG_FILE, FLOATS, Checkpoint, Stored
from jaxmix.converters.checkpoints.quantization import awq, bitsandbytes, fp8, gptq, mxfp4
from jaxmix.converters.checkpoints.quantization.packed import Readout, Source, Turned
from jaxmix.errors import CheckpointError

__all__ = [
    "CONFIGS",
    "PARTS",
    "READERS",
    "SETTINGS_FILES",
    "look",
    "method_of",
    "settings_of",
    "unpacked",
]

Reader = Callable[[Source, Readout], None]

# The fields of config.json that tell of a quantization.
CONFIGS = ("quantization_config", "compression_config")
# A reader for each ``quant_method``. That of fp8 is asked whatever the method's name.
READERS: Mapping[str, Reader] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "mxfp4": mxfp4.read,
}
# Those whose tensors tell all, so that they need no config.
_BY_TENSORS = ("bitsandbytes", "mxfp4")
# Files beside config.json in which older repositories have the settings, and their method.
SETTINGS_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# Parts of modules whose weights other methods keep in integers.
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
# What holds codes by its name alone.
_CODES = (".weight", ".qweight", ".weight_packed", ".W_q", "_blocks")
# Models of which these modules are GPT-2's Conv1D, (in, out), and linear once they are quantized.
_CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D = {"c_attn", "q_attn", "c_proj", "c_fc"}


def look(checkpoint: Checkpoint) -> Readout:
    """The packed weights of a checkpoint; headers are read, and little else.

    Args:
        checkpoint: the base.

    Returns:
        The weights, their parts, and what can't be unpacked.
    """
    tensors, method = checkpoint.tensors, method_of(checkpoint)
    source, readout = Source(tensors, settings_of(checkpoint)), Readout()
    for name in _BY_TENSORS if method is None else [method]:
        if name in READERS and name != "fp8":
            READERS[name](source, readout)
    fp8.read(Source(_others(tensors, readout), source.settings), readout)
    if _has_conv1d(checkpoint):
        for name, packed in readout.packed.items():
            is_turned = name.removesuffix(".weight").rpartition(".")[2] in _CONV1D
            if is_turned and len(packed.shape) == 2:
                readout.packed[name] = Turned.of(packed)
    for name, tensor in _others(tensors, readout).items():
        if name in readout.packed:
            main = readout.packed[name].main.name
            readout.wrong.append(f"{name}: it is there both packed, as {main}, and unpacked")
        elif _is_quantized(name, tensor, method):
            readout.wrong.append(f"{name} in {tensor.file.name}: {tensor.dtype} {tensor.shape}")
            readout.parts.add(name)
    return readout


def _is_quantized(name: str, tensor: Stored, method: str | None) -> bool:
    """Whether a tensor that no reader took is part of a packed weight, as far as can be told."""
    # Models count and index in int64, which no method packs into.
    if tensor.dtype in FLOATS or tensor.dtype in ("BOOL", "I64"):
        return False
    if tensor.dtype.startswith("F") or name.endswith(_CODES):
        return True
    return method is not None


def settings_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What config.json, or a file beside it, says of the quantization; empty if nothing does.

    Raises:
        CheckpointError: if it says something that is no object.
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
            found = [part[name] for name in CONFIGS if isinstance(part.get(name), dict)]
            if any(found):
                return next(filter(None, found))
    for name, method in {} if checkpoint.is_file else SETTINGS_FILES.items():
        if found := checkpoint.json(name):
            return {"quant_method": method, **found}
    return {}


def method_of(checkpoint: Checkpoint) -> str | None:
    """The method by which a checkpoint is quantized; None if nothing says that it is."""
    settings = settings_of(checkpoint)
    found = settings.get("quant_method") or settings.get("quant_algo")
    if found is None and any(settings.get(f"load_in_{bits}bit") for bits in (4, 8)):
        found = "bitsandbytes"
    return str(found or "an unknown method").lower() if settings else None


def _others(tensors: Mapping[str, Stored], readout: Readout) -> dict[str, Stored]:
    """The tensors that belong to no packed weight so far."""
    return {name: tensor for name, tensor in tensors.items() if name not in readout.parts}


def _has_conv1d(checkpoint: Checkpoint) -> bool:
    """Whether a model has modules whose weights lie (in, out) unless they are quantized."""
    config = checkpoint.json(CONFIG_FILE)
    parts = [part for part in (config, *config.values()) if isinstance(part, dict)]
    return any(str(part.get("model_type")) in _CONV1D_MODELS for part in parts)


def unpacked(checkpoint: Checkpoint, readout: Readout) -> dict[str, Stored]:
    """All tensors by name, packed weights as what they stand for, without those that can't be read.

    Args:
        checkpoint: the base.
        readout: what `look` found in it.
    """
    return _others(checkpoint.tensors, readout) | readout.packed
