"""Computes the right answer for an input from its raw bytes, or finds that there is none.

Nothing here imports jaxmix. The numbers are computed in float64; the same formulas in float32 say
how far rounding may lead.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..case import Case
from ..tensorfile import BadFileError
from .bases import Base, read_base
from .formulas import Change, Leaves
from .lycoris import read_diffusers, read_kohya, read_mlx
from .mixes import read_mix
from .names import expect
from .peft import read as read_peft

__all__ = ["Answer", "Leaf", "answer"]

# The significant bits of a dtype, its smallest step and its largest number.
_PRECISION = {
    "F64": (53, 2.0**-1074, 1.7976931348623157e308), "F32": (24, 2.0**-149, 3.4028234663852886e38),
    "F16": (11, 2.0**-24, 65504.0), "BF16": (8, 2.0**-133, 3.3895313892515355e38),
}  # fmt: skip
_SLACK = 64
# The exceptions that Python raises for values of an unexpected type.
_PYTHONS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Leaf:
    """The expected contents of a changed tensor.

    Args:
        dtype: Its dtype.
        numbers: Its numbers in float64.
        tolerance: The allowed error of each number.
    """

    dtype: str
    numbers: np.ndarray
    tolerance: np.ndarray

    def problem(self, numbers: np.ndarray) -> str | None:
        """Describes why other numbers, in float64, are wrong; None if they are right."""
        if numbers.shape != self.numbers.shape:
            return f"shape {numbers.shape}, expected {self.numbers.shape}"
        with np.errstate(invalid="ignore"):
            is_near = np.abs(numbers - self.numbers) <= self.tolerance
        is_wrong = ~np.where(np.isfinite(self.numbers), is_near, ~np.isfinite(numbers))
        if not is_wrong.any():
            return None
        index = tuple(np.argwhere(is_wrong)[0])
        return (
            f"{is_wrong.sum()} of {is_wrong.size} numbers, such as {index}: {numbers[index]}, "
            f"expected {self.numbers[index]} within {self.tolerance[index]:.3g}"
        )


@dataclass(frozen=True)
class Answer:
    """The expected result of a merge.

    Args:
        base: The base.
        changed: The tensors that are not the base's own bytes.
        config: The expected config.json, if it differs from the base's.
    """

    base: Base
    changed: Mapping[str, Leaf]
    config: Any = None


def answer(case: Case) -> Answer:
    """Returns the right answer for an input.

    Raises:
        BadFileError: If the input is invalid, so jaxmix must refuse it.
    """
    try:
        return _answer(case)
    except (*_PYTHONS, re.error) as error:
        # If jaxmix reads such a value, that is a fault.
        raise BadFileError(f"the oracle itself fails: {error!r}") from error


def _answer(case: Case) -> Answer:
    base = read_base(case)
    shapes = base.modules
    steps: list[Mapping[str, Change]] = []
    for adapter in case.adapters:
        match adapter.format:
            case "mix":
                steps += read_mix(adapter, case.files, shapes)
            case "peft":
                steps.append(read_peft(adapter, case.files, shapes))
            case "kohya":
                steps.append(read_kohya(adapter, case.files, shapes))
            case "diffusers":
                steps.append(read_diffusers(adapter, case.files, shapes))
            case _:
                steps.append(read_mlx(adapter, case.files, shapes))
    with np.errstate(all="ignore"):
        changed = {name: _leaf("BF16", value, value, value) for name, value in base.values.items()}
        for site in dict.fromkeys(site for step in steps for site in step):
            changed |= _changed(base, site, [step[site] for step in steps if site in step])
    return Answer(base, changed, _config(case))


def _changed(base: Base, site: str, steps: list[Change]) -> dict[str, Leaf]:
    """Returns a module's tensors after all of its changes."""
    weight = base.places[site]
    bias = f"{weight.removesuffix('.weight')}.bias"
    has_bias = bias in base.tensors
    expect(base.dtype(weight) in _PRECISION, f"{weight} is {base.dtype(weight)}")
    results = []
    for kind in (np.float64, np.float32):
        first = base.numbers(weight).astype(kind)
        lies = first.T if base.is_transposed(site) else first
        flat = lies.reshape(len(lies), math.prod(lies.shape[1:])) if lies.ndim > 1 else lies
        old_bias = base.numbers(bias).astype(kind).reshape(-1) if has_bias else None
        leaves = Leaves(flat, flat, old_bias)
        for step in steps:
            new, new_bias = step(leaves)
            if new_bias is not leaves.bias:
                expect(
                    old_bias is not None and len(old_bias) == len(flat), f"{site} has no such bias"
                )
            leaves = replace(leaves, weight=new, bias=new_bias)
        results.append((leaves.weight.reshape(lies.shape), leaves.bias))
    if base.is_transposed(site):
        results = [(new.T, new_bias) for new, new_bias in results]
    new = [result[0] for result in results]
    new_leaves = {weight: _leaf(base.dtype(weight), new[0], new[1], base.numbers(weight))}
    if has_bias and results[0][1] is not None:
        before = base.numbers(bias)
        new = [result[1].reshape(before.shape) for result in results]
        if not np.array_equal(new[0], before, equal_nan=True):
            expect(base.dtype(bias) in _PRECISION, f"{bias} is {base.dtype(bias)}")
            new_leaves[bias] = _leaf(base.dtype(bias), new[0], new[1], before)
    return new_leaves


def _leaf(dtype: str, numbers: Any, in_float32: Any, before: np.ndarray) -> Leaf:
    """Returns numbers with the tolerance that rounding requires."""
    bits, smallest, largest = _PRECISION[dtype]
    finite = np.isfinite(numbers)
    # Where a row or a column has a number that is not finite, a map may spread it.
    is_lost = ~finite if np.isfinite(before).all() else np.zeros_like(finite)
    is_lost |= finite & np.isfinite(before) & (np.abs(numbers) > largest)
    expect(not is_lost.any(), "the mix makes numbers infinite")
    safe = np.where(finite, numbers, 0.0)
    _, exponents = np.frexp(safe)
    half = np.maximum(np.ldexp(1.0, exponents - bits), smallest) / 2
    drift = np.abs(np.where(finite & np.isfinite(in_float32), in_float32 - numbers, 0.0))
    scale = np.abs(safe).max(initial=0.0) * 2.0**-23
    tolerance = half * 1.01 + _SLACK * (drift.max(initial=0.0) + scale / 8)
    return Leaf(dtype, np.asarray(numbers, np.float64), tolerance)


def _config(case: Case) -> Any:
    """Returns the config.json of a base that is no longer packed."""
    path = f"{case.base}/config.json"
    if not case.dequantize or path not in case.files:
        return None
    config = json.loads(case.files[path])
    fields = {key: value for key, value in config.items() if key != "quantization_config"}
    return {
        key: "bfloat16" if key in ("torch_dtype", "dtype") else value
        for key, value in fields.items()
    }
