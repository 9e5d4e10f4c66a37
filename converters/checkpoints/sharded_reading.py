"""Reads a base checkpoint in slices: each process reads only what its devices hold."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Checkpoint, Stored, read_checkpoint
from jaxmix.converters.checkpoints.quantization import (
    Packed,
    find_packed,
    quantization_method,
    unpacked,
)
from jaxmix.converters.checkpoints.slicing import DTYPES, ranges, read_slice
from jaxmix.errors import CheckpointError, LayoutError, ShapeError, UnsupportedError, listing

__all__ = ["load_params", "read_slice"]

Shardings = (
    jax.sharding.Sharding
    | Mapping[str, jax.sharding.Sharding]
    | Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding]
)


def load_params(
    folder: str | os.PathLike[str],
    shardings: Shardings | None = None,
    *,
    dtype: Any = None,
    names: Iterable[str] | None = None,
    counter: Counter[str] | None = None,
    dequantize: bool = False,
    variant: str | None = None,
) -> dict[str, jax.Array]:
    """Loads a Hugging Face folder onto many devices as ``{name: array}``, in slices.

    With several processes (``jax.distributed.initialize``), each process calls it with the same
    arguments and the same folder, and reads only the slices that its own devices hold. No host
    holds a whole tensor unless its sharding requires it. The result can be used as the params of
    `jaxmix.compose`, and as the ``tensors`` of `jaxmix.models.from_torch`.

    Args:
        folder: The folder, with ``model.safetensors``, or with shards and their index.
        shardings: One sharding for all tensors, a mapping by name, or a function of the name and a
            ``jax.ShapeDtypeStruct``. Tensors that a mapping leaves out are replicated over the mesh
            of the others. By default all tensors are on the first device.
        dtype: The dtype to which floats are cast, slice by slice; by default the file's.
        names: The tensors to read; all by default.
        counter: If given, counts the bytes read by tensor, except those of packed weights.
        dequantize: Read packed weights (fp8, bitsandbytes, GPTQ, AWQ, MXFP4) dequantized, in
            bfloat16 unless ``dtype`` is given.
        variant: Which of several variants of the weights to read, such as ``"fp16"``.

    Returns:
        Arrays by PyTorch name in PyTorch's orientation: a weight is (out, in). Integers have JAX's
        default dtype, int32 unless ``jax_enable_x64`` is set.

    Raises:
        CheckpointError: If the folder is not a checkpoint, a file is damaged, or a name is absent.
        LayoutError: If shardings are not of type ``jax.sharding.Sharding``; all are listed.
        ShapeError: If shardings do not divide their tensors; all are listed.
        UnsupportedError: If tensors have a dtype that can't be read or that JAX would round, or
            are packed and ``dequantize`` is not set.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"up.weight": np.ones((4, 2))}, folder + "/model.safetensors")
        ...     load_params(folder, rows, dtype=np.float32)["up.weight"].sharding == rows
        True

    Source: https://github.com/huggingface/safetensors, format; ``jax.make_array_from_callback``.
    """
    stored = _stored(read_checkpoint(folder, variant), names, dequantize=dequantize)
    if unknown := sorted(set(names or ()) - stored.keys()):
        raise CheckpointError(
            f"{os.fspath(folder)} has no tensors with these names:{listing(unknown)}\nExpected "
            f"names such as {next(iter(stored), 'none: it has no tensors')}."
        )
    selected = stored if names is None else {name: stored[name] for name in names}
    targets = _targets(selected, dtype)
    sharding_of = _sharding_function(shardings)
    outlines = {
        name: jax.ShapeDtypeStruct(tensor.shape, targets[name]) for name, tensor in selected.items()
    }
    chosen = {name: sharding_of(name, outline) for name, outline in outlines.items()}
    _check_shardings(chosen)
    _check_division(outlines, chosen)
    return {
        name: _array(tensor, targets[name], chosen[name], counter)
        for name, tensor in selected.items()
    }


def _stored(
    checkpoint: Checkpoint, names: Iterable[str] | None, *, dequantize: bool
) -> Mapping[str, Stored]:
    """Returns the tensors of a folder by name, without parts of packed weights."""
    readout = find_packed(checkpoint)
    wanted = readout.parts if names is None else readout.parts.intersection(names)
    packed = sorted(wanted & checkpoint.tensors.keys())
    if not packed or (dequantize and not readout.problems):
        return unpacked(checkpoint, readout) if dequantize else checkpoint.tensors
    method = quantization_method(checkpoint)
    advice = "Use the unquantized checkpoint."
    if not readout.problems:
        advice = "Pass dequantize=True to read the dequantized weights."
    packing = f" by {method}" if method else ""
    unusable = readout.problems if dequantize else packed
    raise UnsupportedError(
        f"{checkpoint.name} is quantized{packing}: these tensors are not weights by themselves:"
        f"{listing(unusable)}\n{advice}"
    )


def _read(stored: Stored, index: tuple[slice, ...], counter: Counter[str] | None) -> np.ndarray:
    """Reads a slice of a tensor; of a packed weight in float32."""
    if isinstance(stored, Packed) and stored.shape:
        return stored.rows(index[0])[(slice(None), *index[1:])]
    return stored.read() if isinstance(stored, Packed) else read_slice(stored, index, counter)


def _array(
    stored: Stored, dtype: Any, sharding: jax.sharding.Sharding, counter: Counter[str] | None
) -> jax.Array:
    """Reads a tensor onto its devices.

    If the slices of this process's devices form a block, the block is read at once, since reads
    are longer then; otherwise they are read slice by slice. Slices that several devices hold are
    read once.
    """
    indices = sharding.addressable_devices_indices_map(stored.shape).values()
    # The keys are strings, since slices have no hash before Python 3.12.
    slices = {repr(index): ranges(index, stored.shape) for index in indices}
    block = [
        range(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*slices.values(), strict=True)
    ]
    is_block = _size(block) == sum(map(_size, slices.values()))
    blocks = {
        key: (part, _read(stored, tuple(slice(k.start, k.stop) for k in part), counter))
        for key, part in ({"": block} if is_block else slices).items()
    }

    def cut(index: tuple[slice, ...] | None) -> np.ndarray:
        part, data = blocks["" if is_block else repr(index)]
        pairs = zip(slices[repr(index)], part, strict=True)
        inner = tuple(slice(k.start - outer.start, k.stop - outer.start) for k, outer in pairs)
        return data[inner].astype(dtype, copy=False)

    return jax.make_array_from_callback(stored.shape, sharding, cut, dtype=dtype)


def _size(part: list[range]) -> int:
    """Returns the number of elements of a slice."""
    return math.prod(map(len, part))


def _targets(tensors: Mapping[str, Stored], dtype: Any) -> dict[str, np.dtype]:
    """Returns the dtype of each array."""
    dtypes: dict[str, np.dtype] = {}
    wrong = []
    for name, stored in tensors.items():
        if stored.dtype not in DTYPES:
            wrong.append(f"{name} is {stored.dtype}, expected one of {', '.join(DTYPES)}")
            continue
        cast = stored.dtype in FLOATS and dtype is not None
        target = np.dtype(dtype if cast else DTYPES[stored.dtype])
        canonical = np.dtype(jax.dtypes.canonicalize_dtype(target))
        if stored.dtype in FLOATS and canonical != target:
            wrong.append(f"{name} would be {target}, which JAX rounds unless jax_enable_x64 is set")
        dtypes[name] = canonical
    if wrong:
        raise UnsupportedError(
            f"tensors with unsupported dtypes:{listing(wrong)}\n"
            "Use an unquantized checkpoint, or pass dtype=jnp.float32."
        )
    return dtypes


def _sharding_function(shardings: Shardings | None) -> Callable[[str, Any], jax.sharding.Sharding]:
    """Returns a function from a tensor's name and outline to its sharding."""
    if shardings is None:
        single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return lambda name, outline: single
    if callable(shardings):
        return shardings
    if not isinstance(shardings, Mapping):
        return lambda name, outline: shardings
    default = next(iter(shardings.values()), None)
    if isinstance(default, jax.sharding.NamedSharding):
        default = jax.sharding.NamedSharding(default.mesh, jax.sharding.PartitionSpec())
    rest = _sharding_function(default)
    return lambda name, outline: shardings[name] if name in shardings else rest(name, outline)


def _check_shardings(shardings: Mapping[str, Any]) -> None:
    """Checks that each tensor has a sharding."""
    wrong = [
        f"{name}: {sharding!r}"
        for name, sharding in shardings.items()
        if not isinstance(sharding, jax.sharding.Sharding)
    ]
    if wrong:
        raise LayoutError(
            f"expected a jax.sharding.Sharding for every tensor, found:{listing(wrong)}\nPass "
            "shardings such as NamedSharding(mesh, PartitionSpec('x')), or a function of (name, "
            "outline) that returns them."
        )


def _check_division(
    outlines: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, jax.sharding.Sharding]
) -> None:
    """Checks that each sharding divides its tensor."""
    wrong = []
    for name, outline in outlines.items():
        try:
            shardings[name].shard_shape(outline.shape)
        except ValueError:
            wrong.append(f"{name} {outline.shape}: {shardings[name]}")
    if wrong:
        raise ShapeError(
            f"these shardings do not divide their tensors evenly:{listing(wrong)}\nReplicate such "
            "an axis over the devices: use None for it in the PartitionSpec."
        )
