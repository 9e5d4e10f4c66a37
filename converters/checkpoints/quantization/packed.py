"""The arguments and results of the quantizations' readers: tensors, and packed weights."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmix.converters.checkpoints.huggingface import Stored

__all__ = [
    "Packed",
    "Problem",
    "Readout",
    "Source",
    "Transposed",
    "add_modules",
    "stored_fields",
    "unpack_bits",
]


@dataclass(frozen=True)
class Packed(Stored):
    """A weight that a file stores packed in several tensors; it is written in bfloat16.

    Name and shape are those of the unpacked weight, file and start those of its main tensor.

    Args:
        main: The tensor with the weight's codes, which the unpacked weight replaces.
        kind: The quantization, for messages.
    """

    main: Stored
    kind: str

    @abstractmethod
    def rows(self, part: slice) -> np.ndarray:
        """Returns a run of rows in float32, exactly as the quantization's own library unpacks them.

        Args:
            part: The rows, with start and stop.
        """

    def read(self) -> np.ndarray:
        """Returns the whole weight in float32."""
        return self.rows(slice(0, self.shape[0] if self.shape else 1))


@dataclass(frozen=True)
class Transposed(Packed):
    """The transpose of a packed matrix: quantizers convert GPT-2's Conv1D to a linear layer.

    Args:
        inner: The packed matrix (out, in); this one is (in, out).
    """

    inner: Packed

    @classmethod
    def of(cls, inner: Packed) -> "Transposed":
        """Transposes a matrix."""
        fields = stored_fields(inner.name, inner.shape[::-1], inner.main)
        return cls(*fields, inner.main, inner.kind, inner)

    def rows(self, part: slice) -> np.ndarray:
        """See `Packed`; these are columns of the packed matrix."""
        return np.ascontiguousarray(self.inner.read().T[part])


@dataclass(frozen=True)
class Source:
    """The input of a reader.

    Args:
        tensors: All tensors of the checkpoint by name.
        settings: config.json's ``quantization_config``; empty if absent.
    """

    tensors: Mapping[str, Stored]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """The reason why a packed weight can't be read.

    Args:
        text: The reason, as a message that names the tensors.
    """

    text: str


@dataclass
class Readout:
    """The packed weights of a checkpoint, collected by the readers.

    Args:
        packed: The weights by their unpacked names.
        parts: The names of all tensors that belong to packed weights, which the output lacks.
        problems: Messages about tensors that can't be unpacked.
    """

    packed: dict[str, Packed] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def add(self, result: Packed | Problem, *names: str) -> None:
        """Records a weight, or the reason why it can't be read, and the names of its parts."""
        if isinstance(result, Problem):
            self.problems.append(result.text)
        else:
            self.packed[result.name] = result
        self.parts.update(names)


def stored_fields(
    name: str, shape: tuple[int, ...], main: Stored
) -> tuple[str, str, tuple[int, ...], Any, int, int]:
    """Returns a `Packed`'s fields as a `Stored`: a bfloat16 tensor in place of ``main``."""
    return name, "BF16", shape, main.file, main.start, 2 * math.prod(shape)


def add_modules(
    source: Source,
    readout: Readout,
    parts: Sequence[str],
    read: Callable[[str, Source], Packed | Problem],
) -> None:
    """Adds the weight of every module that has the first of the named parts.

    Args:
        source: The checkpoint.
        readout: Collects the weights.
        parts: The names within a module of the tensors that make up a weight.
        read: Returns a module's weight, or the problem with it.
    """
    for name in source.tensors:
        module, _, last = name.rpartition(".")
        if module and last == parts[0]:
            readout.add(read(module, source), *(f"{module}.{part}" for part in parts))


def unpack_bits(words: np.ndarray, bits: int) -> np.ndarray:
    """Unpacks unsigned integers of a few bits along the last axis, lowest bits first.

    Args:
        words: The words (…, n) that hold them, of any integer dtype.
        bits: The bits of each integer: 2, 3, 4 or 8. Integers of 3 bits may cross word boundaries.

    Returns:
        The integers (…, n · bits of a word / bits) in uint8.

    Example:
        >>> unpack_bits(np.array([[0x21, 0x43]], np.uint8), 4)
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
