"""PEFT's FRoD."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import fan_in_fan_out
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import FLAG, one_of
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing
from jaxmix.families import FRoD, Update
from jaxmix.families.frod import kind_of_module

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """FRoD: sites of one category share V and the positions; U the update takes from the base."""
    values, lengths = need(factors, "frod_lambda_s_values", "frod_lambda_l")
    category = kind_of_module(site)
    names = [f"{name}.{category}" for name in ("frod_V", "frod_s_indices", "frod_s_size")]
    if missing := [name for name in names if name not in file.shared]:
        raise CheckpointError(f"{', '.join(missing)} missing, which its kind of module shares")
    v, indices, told = (file.shared[name] for name in names)
    size = len(v)
    found = dict(zip(names, (v, indices), strict=False)) | factors
    fits = v.shape == (size, size) and lengths.shape == (size,) and values.ndim == 1
    if tuple(told.reshape(-1).tolist()) != v.shape:
        raise CheckpointError(f"{names[2]} is {told.tolist()}, expected {v.shape} as {names[0]} is")
    if not fits or indices.shape != (2, values.size):
        raise ShapeError(f"{shapes(found)}, expected (in, in), (2, n), (n,) and (in,)")
    if values.size and not 0 <= indices.min() <= indices.max() < size:
        raise ShapeError(
            f"{names[1]} goes from {indices.min()} to {indices.max()}, expected 0 to {size - 1}"
        )
    places: Any = indices.astype(np.int32)
    return FRoD(v, values, places, lengths, file.transposed)


def _judged(values: Mapping[str, Any]) -> Iterator[str]:
    """What is not in the file hangs on all of the base's layers at once."""
    if values.get("save_projection") is False:
        yield (
            "save_projection = false: the file leaves out the bases V, whose signs are those of "
            "the LAPACK that PEFT found. Load it with PEFT where it was trained, set "
            "save_projection to true in its peft_config, and save it again"
        )


def _write(updates: Mapping[str, Any]) -> Written:
    kinds: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        kinds.setdefault(kind_of_module(site), {})[site] = update
        tensors[f"{site}.frod_lambda_s_values"] = update.values
        tensors[f"{site}.frod_lambda_l"] = update.lengths
    shared: dict[str, Any] = {}
    for category, own in kinds.items():
        v, places = f"frod_V.{category}", f"frod_s_indices.{category}"
        shared[v] = same_array(own, v, lambda update: update.v)
        indices = same_array(own, places, lambda update: update.indices)
        shared[places] = np.asarray(indices, np.int64)
        shared[f"frod_s_size.{category}"] = np.array(shared[v].shape, np.int64)
    fan = fan_in_fan_out(updates)
    rate = _rate(updates)
    return Written(
        {
            "fan_in_fan_out": fan,
            "progressbar": False,
            "save_projection": True,
            "sparse_rate": rate,
        },
        tensors,
        shared,
    )


def _rate(updates: Mapping[str, Any]) -> float:
    """A rate by which PEFT makes room for as many entries as each site has, before it loads them.

    It takes the whole part of rate times in²; more than none is one at the least.
    """
    counts = {site: (update.values.size, update.v.size) for site, update in updates.items()}
    if not any(count for count, _ in counts.values()):
        return 0.0
    low = max(count / size if count > 1 else 0.0 for count, size in counts.values())
    high = min((count + 1) / size for count, size in counts.values())
    if low >= high or not all(count for count, _ in counts.values()):
        lines = (f"{site}: {count} of {size}" for site, (count, size) in counts.items())
        raise UnsupportedError(
            f"PEFT's FRoD has one sparse_rate for all sites, and no one gives these numbers of "
            f"entries:{listing(lines)}\nExport them as adapters of their own."
        )
    return min((low + high) / 2, 1.0)


KIND = Kind(
    Fields(
        {
            "bias": one_of("none", "all", "frod_only"),
            "fan_in_fan_out": FLAG,
            "save_projection": FLAG,
            **SAVED,
        },
        ABOUT
        | (WHERE - {"exclude_modules"})
        | frozenset(
            "frod_dropout init_weights progressbar projection_prng_key regularization_alpha "
            "runtime_offload_base_weight sparse_rate".split()
        ),
    ),
    ("frod_lambda_s_values", "frod_lambda_l"),
    _build,
    _write,
    shared=("frod_V.#", "frod_s_indices.#", "frod_s_size.#"),
    judged=_judged,
)
