"""A base checkpoint read by slices: each process reads what its devices hold, and no more."""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmix.converters.checkpoints.huggingface import FLOATS, Checkpoint, Stored, read_checkpoint
from jaxmix.converters.checkpoints.quantization import Packed, look, method_of, unpacked
from jaxmix.converters.checkpoints.slicing import DTYPES, ranges, read_slice
from jaxmix.errors import CheckpointError, LayoutError, ShapeError, UnsupportedError, listing

__all__ = ["load_params", "read_slice"]

Where = (
    jax.sharding.Sharding
    | Mapping[str, jax.sharding.Sharding]
    | Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding]
)


def load_params(
    folder: str | os.PathLike[str],
    shardings: Where | None = None,
    *,
    dtype: Any = None,
    names: Iterable[str] | None = None,
    counter: Counter[str] | None = None,
    dequantize: bool = False,
) -> dict[str, jax.Array]:
    """The weights of a Hugging Face folder on many devices: ``{name: array}``, read by slices.

    Under several processes (``jax.distributed.initialize``) each calls it with the same arguments,
    sees the same folder, and reads only the slices that its own devices hold. No tensor is whole on
    any host unless its sharding says so. What comes out is the params of `jaxmix.compose`, and the
    ``tensors`` of `jaxmix.models.from_torch`.

    Args:
        folder: with ``model.safetensors``, or its shards and their index.
        shardings: where each tensor is to lie: one for all, a mapping by name, or a function of the
            name and a ``jax.ShapeDtypeStruct``. Names that a mapping leaves out lie whole on each
            device of the others' mesh. By default all lie on the first device.
        dtype: what to cast floats to, slice by slice; by default each keeps the file's.
        names: which tensors to read; all by default.
        counter: if given, the bytes that were read of each tensor are added up in it; those of
            packed weights are not.
        dequantize: read packed weights (fp8, bitsandbytes, GPTQ, AWQ, MXFP4) as what they stand
            for, in bfloat16 unless ``dtype`` says otherwise.

    Returns:
        Arrays by PyTorch's names in PyTorch's orientation: a weight is (out, in). Whole numbers are
        in JAX's own dtype, int32 unless ``jax_enable_x64`` is set.

    Raises:
        CheckpointError: if the folder is none, a file is damaged, or a name is not in it.
        LayoutError: if a tensor is given something else than a sharding; all are listed.
        ShapeError: if a sharding does not divide its tensor; all are listed.
        UnsupportedError: if tensors have a dtype that can't be read, or that JAX would round; or
            are packed, and ``dequantize`` is not set.

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
    stored = _stored(read_checkpoint(folder), names, dequantize=dequantize)
    if unknown := sorted(set(names or ()) - stored.keys()):
        raise CheckpointError(
            f"{os.fspath(folder)} has no tensors of these names:{listing(unknown)}\nExpected names "
            f"such as {next(iter(stored), 'none: it has no tensors')}."
        )
    wanted = stored if names is None else {name: stored[name] for name in names}
    targets = _targets(wanted, dtype)
    place = _placing(shardings)
    outlines = {
        name: jax.ShapeDtypeStruct(one.shape, targets[name]) for name, one in wanted.items()
    }
    places = {name: place(name, outline) for name, outline in outlines.items()}
    _check_shardings(places)
    _check_division(outlines, places)
    return {name: _array(one, targets[name], places[name], counter) for name, one in wanted.items()}


def _stored(
    checkpoint: Checkpoint, names: Iterable[str] | None, *, dequantize: bool
) -> Mapping[str, Stored]:
    """The tensors of a folder by name, none of which is a part of a packed weight."""
    readout = look(checkpoint)
    wanted = readout.parts if names is None else readout.parts.intersection(names)
    packed = sorted(wanted & checkpoint.tensors.keys())
    if not packed or (dequantize and not readout.wrong):
        return unpacked(checkpoint, readout) if dequantize else checkpoint.tensors
    method = method_of(checkpoint)
    how = "Take the checkpoint that it was made from."
    if not readout.wrong:
        how = "dequantize=True reads the weights that they stand for."
    raise UnsupportedError(
        f"{checkpoint.name} is quantized{f' by {method}' if method else ''}: tensors that are no "
        f"weights by themselves:{listing(readout.wrong if dequantize else packed)}\n{how}"
    )


def _read(stored: Stored, index: tuple[slice, ...], counter: Counter[str] | None) -> np.ndarray:
    """A slice of a tensor; of a packed weight in float32."""
    if isinstance(stored, Packed) and stored.shape:
        return stored.rows(index[0])[(slice(None), *index[1:])]
    return stored.read() if isinstance(stored, Packed) else read_slice(stored, index, counter)


def _array(
    stored: Stored, dtype: Any, sharding: jax.sharding.Sharding, counter: Counter[str] | None
) -> jax.Array:
    """One tensor on its devices.

    What this process's devices hold of it is read at once where that is a block, since then runs
    are long; else slice by slice. What several of them hold is read once.
    """
    places = sharding.addressable_devices_indices_map(stored.shape).values()
    # By text, since slices have no hash before Python 3.12.
    wanted = {repr(index): ranges(index, stored.shape) for index in places}
    block = [
        range(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*wanted.values(), strict=True)
    ]
    is_block = _size(block) == sum(map(_size, wanted.values()))
    read = {
        key: (part, _read(stored, tuple(slice(k.start, k.stop) for k in part), counter))
        for key, part in ({"": block} if is_block else wanted).items()
    }

    def cut(index: tuple[slice, ...] | None) -> np.ndarray:
        part, data = read["" if is_block else repr(index)]
        pairs = zip(wanted[repr(index)], part, strict=True)
        inner = tuple(slice(k.start - own.start, k.stop - own.start) for k, own in pairs)
        return data[inner].astype(dtype, copy=False)

    return jax.make_array_from_callback(stored.shape, sharding, cut, dtype=dtype)


def _size(part: list[range]) -> int:
    """How many numbers a slice has."""
    return math.prod(map(len, part))


def _targets(wanted: Mapping[str, Stored], dtype: Any) -> dict[str, np.dtype]:
    """The dtype of each array."""
    made: dict[str, np.dtype] = {}
    odd = []
    for name, stored in wanted.items():
        if stored.dtype not in DTYPES:
            odd.append(f"{name} is {stored.dtype}, expected one of {', '.join(DTYPES)}")
            continue
        cast = stored.dtype in FLOATS and dtype is not None
        target = np.dtype(dtype if cast else DTYPES[stored.dtype])
        canonical = np.dtype(jax.dtypes.canonicalize_dtype(target))
        if stored.dtype in FLOATS and canonical != target:
            odd.append(f"{name} would be {target}, which JAX rounds unless jax_enable_x64 is set")
        made[name] = canonical
    if odd:
        raise UnsupportedError(
            f"tensors of a dtype that is not done here:{listing(odd)}\n"
            "Take an unquantized checkpoint, or say dtype=jnp.float32."
        )
    return made


def _placing(shardings: Where | None) -> Callable[[str, Any], jax.sharding.Sharding]:
    """The sharding of each tensor, as a function."""
    if shardings is None:
        alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return lambda name, outline: alone
    if callable(shardings):
        return shardings
    if not isinstance(shardings, Mapping):
        return lambda name, outline: shardings
    some = next(iter(shardings.values()), None)
    if isinstance(some, jax.sharding.NamedSharding):
        some = jax.sharding.NamedSharding(some.mesh, jax.sharding.PartitionSpec())
    rest = _placing(some)
    return lambda name, outline: shardings[name] if name in shardings else rest(name, outline)


def _check_shardings(places: Mapping[str, Any]) -> None:
    """Whether each tensor was given a sharding."""
    wrong = [
        f"{name}: {place!r}"
        for name, place in places.items()
        if not isinstance(place, jax.sharding.Sharding)
    ]
    if wrong:
        raise LayoutError(
            f"shardings that are no jax.sharding.Sharding:{listing(wrong)}\nGive one for every "
            "tensor, such as NamedSharding(mesh, PartitionSpec('x')); a function of (name, "
            "outline) must return one."
        )


def _check_division(
    outlines: Mapping[str, jax.ShapeDtypeStruct], places: Mapping[str, jax.sharding.Sharding]
) -> None:
    """Whether each sharding divides its tensor."""
    wrong = []
    for name, outline in outlines.items():
        try:
            places[name].shard_shape(outline.shape)
        except ValueError:
            wrong.append(f"{name} {outline.shape}: {places[name]}")
    if wrong:
        raise ShapeError(
            f"tensors that their sharding does not divide:{listing(wrong)}\nLet such an axis lie "
            "whole on each device: PartitionSpec() in its place."
        )
