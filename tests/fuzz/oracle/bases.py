"""Reads a base on disk independently: its files, its tensors, and which of them are packed."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..case import Case
from ..tensorfile import Tensor
from .names import expect, json_object, tensors_of, without_wrappers

__all__ = ["Base", "read_base"]

_SCALES = ("_scale_inv", "_scale")
_LARGEST = 3.4028235677973366e38
_PACKED = ("F8_E4M3", "F8_E5M2")
_BESIDE = ("input_scale", "output_scale", "activation_scale", "input_scale_inv")


@dataclass(frozen=True)
class Base:
    """The contents of a base.

    Args:
        shards: The names of its files of tensors; ``""`` for a base that is one file.
        tensors: by name, those that the output has, with the file that holds each. Of those that
            are packed dtype and shape are the output's, and there are no bytes.
        values: The numbers of packed tensors, which are written in bfloat16.
    """

    shards: tuple[str, ...]
    tensors: Mapping[str, tuple[str, Tensor]]
    values: Mapping[str, np.ndarray]

    def numbers(self, name: str) -> np.ndarray:
        """Returns a tensor's numbers."""
        return self.values[name] if name in self.values else self.tensors[name][1].numbers

    def dtype(self, name: str) -> str:
        """Returns a tensor's dtype in the output."""
        return self.tensors[name][1].dtype

    @property
    def modules(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes (out, in, …) of modules' weights, by their plain names."""
        shapes = {module: self.tensors[leaf][1].shape for module, leaf in self.places.items()}
        return {m: s[::-1] if self.is_transposed(m) else s for m, s in shapes.items()}

    def is_transposed(self, module: str) -> bool:
        """Whether a module's weight is stored as (in, out), by the size of its bias."""
        leaf = self.places[module]
        shape, bias = self.tensors[leaf][1].shape, f"{leaf.removesuffix('.weight')}.bias"
        if len(shape) != 2 or bias not in self.tensors or shape[0] == shape[1]:
            return False
        return self.tensors[bias][1].shape == shape[1:]

    @property
    def places(self) -> dict[str, str]:
        """Returns the names of weights by their modules' plain names, without ambiguous ones.

        A leaf of another name is a parameter, which adapters call by its own name.
        """
        plain = {name: without_wrappers(name).removesuffix(".weight") for name in self.tensors}
        counts = Counter(plain.values())
        return {module: name for name, module in plain.items() if counts[module] == 1 and module}


def read_base(case: Case) -> Base:
    """Reads a case's base.

    Raises:
        BadFileError: If it is damaged.
    """
    if case.base in case.files:
        tensors, _ = tensors_of(case.files, case.base)
        return Base(("",), {name: ("", tensor) for name, tensor in tensors.items()}, {})
    single = "model.safetensors"
    if f"{case.base}/{single}" in case.files:
        single_tensors, _ = tensors_of(case.files, f"{case.base}/{single}")
        shards, placed = (
            (single,),
            {name: (single, tensor) for name, tensor in single_tensors.items()},
        )
    else:
        shards, placed = _indexed(case)
    if not case.dequantize:
        return Base(shards, placed, {})
    return _dequantized(case, shards, placed)


def _indexed(case: Case) -> tuple[tuple[str, ...], dict[str, tuple[str, Tensor]]]:
    """Returns the tensors of the files that an index names; both must agree."""
    places = json_object(case.files, f"{case.base}/model.safetensors.index.json").get("weight_map")
    expect(isinstance(places, dict) and places, "no weight_map")
    assert isinstance(places, dict)
    expect(all(isinstance(file, str) for file in places.values()), "files that are no strings")
    shards = tuple(dict.fromkeys(places.values()))
    placed: dict[str, tuple[str, Tensor]] = {}
    for shard in shards:
        expect(not shard.startswith("/") and ".." not in shard.split("/"), "a file outside")
        for name, tensor in tensors_of(case.files, f"{case.base}/{shard}")[0].items():
            expect(name not in placed and places.get(name) == shard, f"{name} is not as indexed")
            placed[name] = shard, tensor
    expect(placed.keys() == places.keys(), "tensors are missing")
    return shards, placed


def _dequantized(case: Case, shards: Any, placed: Mapping[str, tuple[str, Tensor]]) -> Base:
    """Returns the tensors, with fp8 and MXFP4 dequantized."""
    path = f"{case.base}/config.json"
    config = json_object(case.files, path) if path in case.files else {}
    settings = config.get("quantization_config") or {}
    expect(isinstance(settings, dict), "quantization_config is no object")
    values, parts, packed = {}, set(), {}
    for name, (shard, tensor) in placed.items():
        if tensor.dtype in _PACKED:
            scales = [f"{name}{end}" for end in _SCALES if f"{name}{end}" in placed]
            module = name.rpartition(".")[0]
            parts |= {name, *scales[:1], *(f"{module}.{part}" for part in _BESIDE)}
            expect(scales or not settings, f"{name} has no scale")
            numbers = tensor.numbers
            if scales:
                numbers = numbers * _spread(placed[scales[0]][1], tensor.shape, settings)
            weight = name
        elif name.endswith("_blocks") and tensor.dtype == "U8":
            weight = name.removesuffix("_blocks")
            expect(f"{weight}_scales" in placed, f"{weight} has no scales")
            parts |= {name, f"{weight}_scales"}
            numbers = _mxfp4(tensor, placed[f"{weight}_scales"][1])
        else:
            continue
        expect(weight == name or weight not in placed, f"{weight} is there twice")
        # To transformers, too, a product beyond float32 is infinite.
        with np.errstate(invalid="ignore"):
            infinite = np.sign(numbers) * np.inf
        values[weight] = np.where(np.abs(numbers) > _LARGEST, infinite, numbers)
        packed[weight] = shard, Tensor("BF16", numbers.shape, b"")
    plain = {name: place for name, place in placed.items() if name not in parts}
    return Base(shards, {**plain, **packed}, values)


# What codes of 4 bits stand for: a sign, two bits of exponent, one of mantissa.
_CODES = (0.0, 0.5, 1, 1.5, 2, 3, 4, 6)


def _mxfp4(blocks: Tensor, scales: Tensor) -> np.ndarray:
    """Dequantizes gpt-oss's blocks (experts, out, groups, bytes) to experts (experts, in, out)."""
    expect(scales.dtype == "U8" and scales.shape == blocks.shape[:-1], "other scales")
    expect(len(blocks.shape) == 4, "other blocks")
    table = np.array([*_CODES, *(-code for code in _CODES)])
    codes = blocks.numbers
    values = np.stack([table[codes % 16], table[codes // 16]], axis=-1)
    experts, out, groups, size = blocks.shape
    values = values.reshape(experts, out, groups, 2 * size) * _powers(scales.numbers)[..., None]
    return values.reshape(experts, out, -1).swapaxes(1, 2)


def _powers(exponents: np.ndarray) -> np.ndarray:
    return np.where(exponents == 255, np.nan, np.ldexp(1.0, exponents - 127))


def _spread(scale: Tensor, shape: tuple[int, ...], settings: Mapping[str, Any]) -> np.ndarray:
    """Expands a scale to every number of a weight."""
    if scale.dtype == "U8":
        numbers = _powers(scale.numbers)
    else:
        expect(scale.is_float or scale.dtype == "F8_E8M0", f"a scale of {scale.dtype}")
        numbers = scale.numbers
    if math.prod(scale.shape) == 1:
        return numbers.reshape(())
    block = settings.get("weight_block_size")
    block = [128, 128] if block is None else block
    expect(isinstance(block, list) and 0 < len(block) <= len(shape), f"blocks {block!r}")
    expect(all(type(run) is int and run > 0 for run in block), f"blocks {block!r}")
    expect(numbers.ndim <= len(shape), "a scale with more axes")
    numbers = numbers.reshape(*numbers.shape, *[1] * (len(shape) - numbers.ndim))
    runs = [1] * (len(shape) - len(block)) + list(block)
    for axis, (size, run) in enumerate(zip(shape, runs, strict=True)):
        have = numbers.shape[axis]
        if have != -(-size // run):  # for each row, for all, or in blocks of another size
            expect(have and size % have == 0, f"a scale of {scale.shape} for {shape}")
            run = size // have
        numbers = np.take(numbers, np.arange(size) // run, axis)
    return numbers
