"""What a reader of a quantization gets and gives: a checkpoint's tensors, and packed weights."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Stored

__all__ = ["Packed", "Readout", "Source", "Turned", "add_modules", "fields", "place"]


@dataclass(frozen=True)
class Packed(Stored):
    """A weight that several tensors of a file stand for; it is written in bfloat16.

    Name and shape are those of the unpacked weight, file and start those of its main tensor.

    Args:
        main: the tensor that holds the weight's codes, in whose place the weight is written.
        kind: the quantization, for messages.
    """

    main: Stored
    kind: str

    @abstractmethod
    def rows(self, part: slice) -> np.ndarray:
        """A run of rows in float32: exactly what the quantization's own library makes of them.

        Args:
            part: the run, with start and stop.
        """

    def read(self) -> np.ndarray:
        """The whole weight in float32."""
        return self.rows(slice(0, self.shape[0] if self.shape else 1))


@dataclass(frozen=True)
class Turned(Packed):
    """The transpose of a packed matrix: quantizers turn GPT-2's Conv1D into a linear layer.

    Args:
        inner: the matrix (out, in) as it is packed; this one is (in, out).
    """

    inner: Packed

    @classmethod
    def of(cls, inner: Packed) -> "Turned":
        """The transpose of a matrix."""
        return cls(*place(inner.name, inner.shape[::-1], inner.main), inner.main, inner.kind, inner)

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`: a run of the packed matrix's columns."""
        return np.ascontiguousarray(self.inner.read().T[part])


@dataclass(frozen=True)
class Source:
    """A checkpoint as a reader sees it.

    Args:
        tensors: all tensors by name.
        settings: config.json's ``quantization_config``; empty if absent.
    """

    tensors: Mapping[str, Stored]
    settings: Mapping[str, Any]


@dataclass
class Readout:
    """What readers found, collected as they go.

    Args:
        packed: the weights by their unpacked names.
        parts: the names of all tensors that stand for these weights, and so disappear.
        wrong: tensors that can't be unpacked, each with the reason.
    """

    packed: dict[str, Packed] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def add(self, found: Packed | str, *names: str) -> None:
        """Records a weight, or the reason why it is none, and the tensors that it is made of."""
        if isinstance(found, str):
            self.wrong.append(found)
        else:
            self.packed[found.name] = found
        self.parts.update(names)


def place(
    name: str, shape: tuple[int, ...], main: Stored
) -> tuple[str, str, tuple[int, ...], Any, int, int]:
    """The first fields of a `Packed`: those of a tensor of bfloat16 in the place of another."""
    return name, "BF16", shape, main.file, main.start, 2 * math.prod(shape)


def add_modules(
    source: Source,
    readout: Readout,
    parts: Sequence[str],
    read: Callable[[str, Source], Packed | str],
) -> None:
    """Adds the weight of every module that has the first of some tensors.

    Args:
        source: The checkpoint.
        readout: Where they are added.
        parts: The last names of the tensors of which a weight is made.
        read: From a module to its weight, or to what is wrong with it.
    """
    for name in source.tensors:
        module, _, last = name.rpartition(".")
        if module and last == parts[0]:
            readout.add(read(module, source), *(f"{module}.{part}" for part in parts))


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers of a few bits, the lowest bits first, along the last axis.

    Args:
        words: the words (…, n) that hold them, of any integer dtype.
        bits: how many bits each has: 2, 3, 4 or 8. One of 3 bits may lie across two words.

    Returns:
        The integers (…, n · bits of a word / bits) in uint8.

    Example:
        >>> fields(np.array([[0x21, 0x43]], np.uint8), 4)
        array([[1, 2, 3, 4]], dtype=uint8)
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    if bits == 3:
        single = np.unpackbits(data, axis=-1, bitorder="little")
        single = single.reshape(*data.shape[:-1], data.shape[-1] * 8 // 3, 3)
        return single[..., 0] | single[..., 1] << 1 | single[..., 2] << 2
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    parts = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return parts.reshape(*data.shape[:-1], data.shape[-1] * 8 // bits)
