"""PEFT's VeRA and PVeRA, whose projections are one pair for all sites, saved or drawn."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, FLAG, INTEGER, one_of
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
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import PVeRA, VeRA

__all__ = ["PVERA", "VERA"]


def _build(file: File, site: str, factors: SiteTensors) -> VeRA:
    """VeRA or PVeRA at a site, by the config's type."""
    make = PVeRA if file.config.family == "PVERA" else VeRA
    name, rank = make.prefix, file.config.values["r"]
    lambda_b, lambda_d = required(factors, f"{name}_lambda_b", f"{name}_lambda_d")
    wide = rank * (2 if make is PVeRA else 1)
    if lambda_b.ndim != 1 or lambda_d.shape != (wide,):
        raise ShapeError(
            f"{describe_shapes(factors)}, expected (out,) and ({wide},) with rank {rank}"
        )
    a, b = _projections(file, name, wide, rank)
    if (a.ndim, b.ndim, *a.shape[:1], *b.shape[1:]) != (2, 2, wide, rank):
        shapes = describe_shapes({f"{name}_A": a, f"{name}_B": b})
        raise ShapeError(f"{shapes}, expected ({wide}, in) and (out, {rank}) with rank {rank}")
    return make(a, b, lambda_b, lambda_d, transposed=file.transposed)


def _projections(file: File, name: str, wide: int, rank: int) -> tuple[Any, Any]:
    """A and B of all sites, from the file or drawn as in PEFT."""
    a, b = (file.shared.get(f"{name}_{side}") for side in "AB")
    if a is not None and b is not None:
        return a, b
    if file.config.values.get("save_projection", True):
        raise CheckpointError(f"{name}_A or {name}_B is missing, but save_projection is true")
    sizes = [file.sizes(site) for site in file.sites]
    out_size, in_size = (max(axis) for axis in zip(*sizes, strict=True))
    torch = file.torch(f"{name}_A and {name}_B")
    seed = file.config.values["projection_prng_key"]
    if "drawn" not in file.cache:  # all sites share the two arrays
        file.cache["drawn"] = _drawn(torch, seed, (wide, in_size), (out_size, rank))
    return file.cache["drawn"]


def _drawn(torch: Any, seed: int, *pair: tuple[int, int]) -> Any:
    """Draws Kaiming-uniform matrices in sequence from one generator."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = []
    for shape in pair:
        bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
        empty = torch.empty(shape, dtype=torch.float32)
        drawn.append(empty.uniform_(-bound, bound, generator=generator).numpy())
    return tuple(drawn)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the projections, so PEFT draws none."""
    name = next(iter(updates.values())).prefix
    ends = ("lambda_b", "lambda_d")
    return PeftContent(
        {
            "r": equal_value(updates, "r", lambda update: update.b.shape[1]),
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": fan_in_fan_out(updates),
        },
        {f"{site}.{name}_{end}": getattr(up, end) for site, up in updates.items() for end in ends},
        {
            f"{name}_A": same_array(updates, f"{name}_A", lambda update: update.a),
            f"{name}_B": same_array(updates, f"{name}_B", lambda update: update.b),
        },
    )


def _samples(values: Mapping[str, Any]) -> Iterator[str]:
    """Refuses a PVeRA that draws at inference."""
    if values.get("sample_at_inference"):
        yield (
            "sample_at_inference = true: PEFT draws new numbers at every call, for every token, "
            "which no fixed weight computes. Set it to false for the mean"
        )


def _fields(name: str, **more: Any) -> ConfigFields:
    return ConfigFields(
        {
            "bias": one_of("none", "all", f"{name}_only"),
            "fan_in_fan_out": FLAG,
            "projection_prng_key": INTEGER,
            "r": COUNT,
            "save_projection": FLAG,
            **SAVED,
            **more,
        },
        ABOUT
        | (WHERE - {"exclude_modules"})
        | {"d_initial", "init_weights", f"{name}_dropout"}
        | ({"generator_seed"} if name == "pvera" else frozenset()),
    )


def _kind(name: str, fields: ConfigFields, **more: Any) -> PeftType:
    parameters, common = (f"{name}_lambda_b", f"{name}_lambda_d"), (f"{name}_A", f"{name}_B")
    return PeftType(fields, parameters, _build, _write, common, **more)


VERA = _kind("vera", _fields("vera"))
PVERA = _kind("pvera", _fields("pvera", sample_at_inference=FLAG), find_problems=_samples)
