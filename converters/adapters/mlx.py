"""mlx-lm's folders: adapters.safetensors and an adapter_config.json of its own.

Orientation: lora_a (in, r), lora_b (r, out); of an embedding (V, r) and (r, D).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.base import BaseModel, base_model
from jaxmix.converters.adapters.lycoris.files import json_of, without_wrappers
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.tensors import FLOATS, read_tensors
from jaxmix.converters.adapters.peft.values import NUMBER
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

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "is_mlx", "is_mlx_file", "read_mlx"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapters.safetensors"
_PARAMETERS = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m")}
# Of these modules the weight is (V, D), and the factors lie in its own order.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embeddings", "embed")


def is_mlx(path: Path) -> bool:
    """Whether it is a folder that mlx-lm wrote, or the weights in one."""
    if path.name == WEIGHTS_FILE and path.is_file():
        path = path.parent
    return (path / WEIGHTS_FILE).is_file() and (path / CONFIG_FILE).is_file()


def is_mlx_file(name: str) -> bool:
    """Whether a file is the adapter's or, with a step's number before it, an earlier state's."""
    return name.removesuffix(WEIGHTS_FILE).rstrip("_").isdigit() or name == WEIGHTS_FILE


def read_mlx(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, scale: float | None = None
) -> Adapter:
    """Reads the adapter in a folder that mlx-lm's trainer wrote.

    Args:
        path: the folder, or its ``adapters.safetensors``.
        name: what to call the adapter.
        strength: the strength with which it enters a mix, a real scalar.
        base: what the adapter is for; asked for the shape of a module that may be an embedding.
        scale: the scale, where the config's may mean either of two.

    Returns:
        The adapter. ``fine_tune_type`` "full" is replaced leaves.

    Raises:
        CheckpointError: if a file is missing or damaged, or keys mean nothing.
        UnsupportedError: if factors are of experts, or the config's scale may mean either of two.
        ShapeError: if factors disagree.
        AdapterError: if a number is not finite.

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
    given = _scale(config, path / CONFIG_FILE) if scale is None and kind != "full" else scale
    model = None if base is None else base_model(base)
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, factors in sites.items():
        try:
            if kind == "full":
                updates[site] = _replaced(factors)
            else:
                updates[site] = _low_rank(site, factors, kind, float(given or 0), model)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        raise type(failed[0][1])(
            f"{file}: tensors that make no {kind} update:"
            f"{listing(f'{site}: {error}' for site, error in failed)}\nWas the file edited, or cut?"
        ) from failed[0][1]
    return Adapter(updates, name=name) * strength


def _config(path: Path) -> dict[str, Any]:
    """The config, an object."""
    try:
        text = read_small(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}. Expected mlx-lm's config."
        ) from error
    config = json_of(text)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no JSON object, expected mlx-lm's config. Save it again.")
    return config


def _scale(config: Mapping[str, Any], path: Path) -> float:
    """The scale, which mlx-lm does not divide by the rank."""
    said = config.get("lora_parameters")
    if not isinstance(said, dict) or not NUMBER.holds(said.get("scale")):
        raise CheckpointError(
            f"{path}: lora_parameters is {said!r}, expected an object with a number as scale. "
            f"Give the scale that it was trained with: {option('scale', ..., of='load(path')}."
        )
    alpha, rank = said.get("alpha"), said.get("rank")
    if alpha is not None and alpha != rank:
        raise UnsupportedError(
            f"{path}: lora_parameters has alpha = {alpha!r} beside rank = {rank!r} and scale = "
            f"{said['scale']!r}. Old versions of mlx-lm multiplied the scale by alpha / rank, "
            "later ones leave alpha out. Say which it is: "
            f"{option('scale', ..., of='load(path')}."
        )
    return float(said["scale"])


def _sites(tensors: Mapping[str, Any], kind: str, file: Path) -> dict[str, Factors]:
    """The tensors by module."""
    names = _PARAMETERS.get(kind, ("weight", "bias"))
    sites: dict[str, Factors] = {}
    unknown: list[str] = []
    for key, tensor in without_wrappers(tensors, str(file)).items():
        module, _, parameter = key.rpartition(".")
        if not module or parameter not in names or tensor.dtype not in FLOATS:
            unknown.append(f"{key}: {tensor.dtype} {tensor.shape}")
        else:
            sites.setdefault(module, {})[parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{file}: keys that mean nothing where fine_tune_type is {kind!r}:{listing(unknown)}\n"
            f"Expected floats under <module>.<one of {', '.join(names)}>."
        )
    return sites


def _low_rank(
    site: str, factors: Factors, kind: str, scale: float, base: BaseModel | None
) -> Update:
    """LoRA or DoRA, of a linear layer or an embedding."""
    a, b = need(factors, "lora_a", "lora_b")
    if a.ndim == b.ndim == 3:
        raise UnsupportedError(f"{shapes(factors)}: of experts, which jaxmix does not read yet")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"{shapes(factors)}, expected lora_a (in, r) and lora_b (r, out)")
    magnitude = need(factors, "m")[0] if kind == "dora" else None
    is_embedding = _is_embedding(site, (a.shape[0], b.shape[1]), base)
    rows = a.shape[0] if is_embedding else b.shape[1]
    if magnitude is not None and magnitude.shape != (rows,):
        raise ShapeError(f"{shapes(factors)}, expected m ({rows},)")
    if is_embedding:
        # DoRA's norm is a token's here, so that to jaxmix it is a layer like any other.
        return LoRA(b, a, scale, magnitude=magnitude, embedding=magnitude is None)
    return LoRA(a.T, b.T, scale, magnitude=magnitude)


def _is_embedding(site: str, shape: tuple[int, int], base: BaseModel | None) -> bool:
    """Whether a module is an embedding: by the base's shape, else by its name."""
    if base is not None and shape[0] != shape[1]:
        return tuple(base.shape(site)) == shape
    return site.rpartition(".")[2] in _EMBEDDINGS


def _replaced(factors: Factors) -> Update:
    """A layer that was trained whole."""
    weight, bias = factors.get("weight"), factors.get("bias")
    if weight is not None and (weight.ndim not in (1, 2) or not weight.size):
        raise UnsupportedError(f"{shapes(factors)}: mlx lays convolutions out in another order")
    if bias is not None and (bias.ndim != 1 or not bias.size):
        raise ShapeError(f"{shapes(factors)}, expected bias (out,)")
    return Replace(weight, bias)
