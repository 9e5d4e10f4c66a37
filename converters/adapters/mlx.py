"""mlx-lm's folders: adapters.safetensors and mlx-lm's own adapter_config.json.

Orientation: lora_a (in, r), lora_b (r, out); for an embedding (V, r) and (r, D).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.base_model import BaseModel, base_model
from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.tensor_files import (
    CONFIG_FILE,
    parse_json_or_none,
    strip_wrappers,
)
from jaxmix.converters.adapters.common.tensors import FACTOR_DTYPES, read_tensors
from jaxmix.converters.adapters.common.values import NUMBER
from jaxmix.errors import (
    CheckpointError,
    JaxmixError,
    ShapeError,
    UnsupportedError,
    listing,
    option,
)
from jaxmix.families import LoRA, Replace, Update
from jaxmix.untrusted.files import read_small

__all__ = ["WEIGHTS_FILE", "is_mlx", "is_mlx_file", "read_mlx"]

WEIGHTS_FILE = "adapters.safetensors"
_PARAMETERS = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
# Modules whose weight is (V, D), with the factors in the same order of axes.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embeddings", "embed")


def is_mlx(path: Path) -> bool:
    """Returns whether a path is a folder of mlx-lm, or the weights in one."""
    if path.name == WEIGHTS_FILE and path.is_file():
        path = path.parent
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def is_mlx_file(name: str) -> bool:
    """Returns whether a file has the adapter's tensors, or those of an earlier step."""
    return name.removesuffix(WEIGHTS_FILE).rstrip("_").isdigit() or name == WEIGHTS_FILE


def read_mlx(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, scale: float | None = None
) -> Adapter:
    """Reads the adapter in a folder of mlx-lm's trainer.

    Args:
        path: The folder, or its ``adapters.safetensors``.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        base: The model that it was trained on, for the shapes of modules that may be embeddings.
        scale: The scale, if the one in the config is ambiguous.

    Returns:
        The adapter; replaced leaves if ``fine_tune_type`` is "full".

    Raises:
        CheckpointError: If a file is missing or damaged, or keys are unknown.
        UnsupportedError: If factors belong to experts, or the config's scale is ambiguous.
        ShapeError: If factors disagree.
        AdapterError: If a number is not finite.

    Example:
        >>> read_mlx(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder/adapter_config.json can't be read: ...

    Source: ml-explore/mlx-lm, ``mlx_lm/tuner/lora.py``, ``dora.py``, ``utils.py``.
    """
    path = path.parent if path.is_file() else path
    config = _config(path / CONFIG_FILE)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise UnsupportedError(
            f"{path / CONFIG_FILE}: fine_tune_type is {kind!r}, expected 'lora', 'dora' or 'full'."
        )
    file = path / WEIGHTS_FILE
    sites = _sites(read_tensors(file), kind, file)
    if scale is not None and not NUMBER.holds(scale):
        raise UnsupportedError(f"scale is {scale!r}, expected a finite number, or None.")
    scale_value = _scale(config, path / CONFIG_FILE) if scale is None and kind != "full" else scale
    model = None if base is None else base_model(base)
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, factors in sites.items():
        try:
            if kind == "full":
                updates[site] = _replaced(factors)
            else:
                updates[site] = _low_rank(site, factors, kind, float(scale_value or 0), model)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        raise type(failed[0][1])(
            f"{file}: tensors that are not a valid {kind} update:"
            f"{listing(f'{site}: {error}' for site, error in failed)}\nWas the file edited or "
            f"truncated?"
        ) from failed[0][1]
    return Adapter(updates, name=name) * strength


def _config(path: Path) -> dict[str, Any]:
    """Reads the config."""
    try:
        text = read_small(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}. Expected mlx-lm's config."
        ) from error
    config = parse_json_or_none(text)
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{path} is not a JSON object, expected mlx-lm's config. Save it again."
        )
    return config


def _scale(config: Mapping[str, Any], path: Path) -> float:
    """Returns the scale, which mlx-lm does not divide by the rank."""
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not NUMBER.holds(parameters.get("scale")):
        raise CheckpointError(
            f"{path}: lora_parameters is {parameters!r}, expected an object with a number as "
            f"scale. Pass the scale with which it was trained: "
            f"{option('scale', ..., of='load(path')}."
        )
    alpha, rank = parameters.get("alpha"), parameters.get("rank")
    if alpha is not None and alpha != rank:
        raise UnsupportedError(
            f"{path}: lora_parameters has alpha = {alpha!r}, rank = {rank!r} and scale = "
            f"{parameters['scale']!r}. Old versions of mlx-lm multiplied the scale by alpha / "
            "rank, later ones ignore alpha. Pass the scale that was used: "
            f"{option('scale', ..., of='load(path')}."
        )
    return float(parameters["scale"])


def _sites(tensors: Mapping[str, Any], kind: str, file: Path) -> dict[str, SiteTensors]:
    """The tensors by module."""
    names = _PARAMETERS.get(kind, ("weight", "bias"))
    sites: dict[str, SiteTensors] = {}
    unknown: list[str] = []
    for key, tensor in strip_wrappers(tensors, str(file)).items():
        module, _, parameter = key.rpartition(".")
        if not module or parameter not in names or tensor.dtype not in FACTOR_DTYPES:
            unknown.append(f"{key}: {tensor.dtype} {tensor.shape}")
        else:
            sites.setdefault(module, {})[parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{file}: unknown keys for fine_tune_type {kind!r}:{listing(unknown)}\n"
            f"Expected floats under <module>.<one of {', '.join(names)}>."
        )
    return sites


def _low_rank(
    site: str, factors: SiteTensors, kind: str, scale: float, base: BaseModel | None
) -> Update:
    """LoRA or DoRA, of a linear layer or an embedding."""
    a, b = required(factors, "lora_a", "lora_b")
    if a.ndim == b.ndim == 3:
        raise UnsupportedError(
            f"{describe_shapes(factors)}: factors of experts, which jaxmix does not read yet"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"{describe_shapes(factors)}, expected lora_a (in, r) and lora_b (r, out)")
    magnitude = required(factors, "m")[0] if kind == "dora" else None
    is_embedding = _is_embedding(site, (a.shape[0], b.shape[1]), base)
    rows = a.shape[0] if is_embedding else b.shape[1]
    if magnitude is not None and magnitude.shape != (rows,):
        raise ShapeError(f"{describe_shapes(factors)}, expected m ({rows},)")
    if is_embedding:
        # mlx-lm takes DoRA's norm per token, so the embedding is treated like a linear layer.
        return LoRA(b, a, scale, magnitude=magnitude, embedding=magnitude is None)
    return LoRA(a.T, b.T, scale, magnitude=magnitude)


def _is_embedding(site: str, shape: tuple[int, int], base: BaseModel | None) -> bool:
    """Whether a module is an embedding: by the base's shape, otherwise by its name."""
    if base is not None and shape[0] != shape[1]:
        return tuple(base.shape(site)) == shape
    return site.rpartition(".")[2] in _EMBEDDINGS


def _replaced(factors: SiteTensors) -> Update:
    """Returns the update of a fully trained layer."""
    weight, bias = factors.get("weight"), factors.get("bias")
    if weight is not None and (weight.ndim not in (1, 2) or not weight.size):
        raise UnsupportedError(
            f"{describe_shapes(factors)}: mlx stores the axes of convolutions in another order"
        )
    if bias is not None and (bias.ndim != 1 or not bias.size):
        raise ShapeError(f"{describe_shapes(factors)}, expected bias (out,)")
    return Replace(weight, bias)
