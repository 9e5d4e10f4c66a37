"""PEFT's FRoD."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import FLAG, one_of
from jaxmix.converters.adapters.peft.arrays import same_array
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing
from jaxmix.families import FRoD, Update
from jaxmix.families.frod import module_category

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """FRoD; sites of one category share V and the positions, and U comes from the base."""
    values, lengths = required(factors, "frod_lambda_s_values", "frod_lambda_l")
    category = module_category(site)
    names = [f"{name}.{category}" for name in ("frod_V", "frod_s_indices", "frod_s_size")]
    if missing := [name for name in names if name not in file.shared]:
        raise CheckpointError(
            f"{', '.join(missing)} missing, which all modules of its category share"
        )
    v, indices, size_tensor = (file.shared[name] for name in names)
    size = len(v)
    shown = dict(zip(names, (v, indices), strict=False)) | factors
    fits = v.shape == (size, size) and lengths.shape == (size,) and values.ndim == 1
    if tuple(size_tensor.reshape(-1).tolist()) != v.shape:
        raise CheckpointError(
            f"{names[2]} is {size_tensor.tolist()}, expected {v.shape}, the shape of {names[0]}"
        )
    if not fits or indices.shape != (2, values.size):
        raise ShapeError(f"{describe_shapes(shown)}, expected (in, in), (2, n), (n,) and (in,)")
    if values.size and not 0 <= indices.min() <= indices.max() < size:
        raise ShapeError(
            f"{names[1]} has values from {indices.min()} to {indices.max()}, expected 0 to "
            f"{size - 1}"
        )
    places: Any = indices.astype(np.int32)
    return FRoD(v, values, places, lengths, file.transposed)


def _find_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Refuses files without the projections, which depend on all of the base's layers."""
    if values.get("save_projection") is False:
        yield (
            "save_projection = false: the file leaves out the bases V, whose signs depend on the "
            "LAPACK that PEFT used. Load it with PEFT where it was trained, set "
            "save_projection to true in its peft_config, and save it again"
        )


def _write(updates: Mapping[str, Any]) -> PeftContent:
    categories: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        categories.setdefault(module_category(site), {})[site] = update
        tensors[f"{site}.frod_lambda_s_values"] = update.values
        tensors[f"{site}.frod_lambda_l"] = update.lengths
    shared: dict[str, Any] = {}
    for category, members in categories.items():
        v, places = f"frod_V.{category}", f"frod_s_indices.{category}"
        shared[v] = same_array(members, v, lambda update: update.v)
        indices = same_array(members, places, lambda update: update.indices)
        shared[places] = np.asarray(indices, np.int64)
        shared[f"frod_s_size.{category}"] = np.array(shared[v].shape, np.int64)
    fan = fan_in_fan_out(updates)
    rate = _rate(updates)
    return PeftContent(
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
    """The rate for which PEFT allocates as many entries as each site has, before it loads them.

    PEFT rounds rate times in² down, and any positive number up to at least one.
    """
    counts = {site: (update.values.size, update.v.size) for site, update in updates.items()}
    if not any(count for count, _ in counts.values()):
        return 0.0
    low = max(count / size if count > 1 else 0.0 for count, size in counts.values())
    high = min((count + 1) / size for count, size in counts.values())
    if low >= high or not all(count for count, _ in counts.values()):
        lines = (f"{site}: {count} of {size}" for site, (count, size) in counts.items())
        raise UnsupportedError(
            f"PEFT's FRoD has one sparse_rate for all sites, and no rate gives these numbers of "
            f"entries:{listing(lines)}\nExport them as separate adapters."
        )
    return min((low + high) / 2, 1.0)


PEFT_TYPE = PeftType(
    ConfigFields(
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
    find_problems=_find_problems,
)
