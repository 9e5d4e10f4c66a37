"""PEFT's PSOFT."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import (
    BOUND,
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    ROUNDS,
    TERMS,
    one_of,
)
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, listing, to_lora_call
from jaxmix.families import PSOFT, Update

__all__ = ["PEFT_TYPE"]

_HOW = (
    "computes from the base's weight by torch's SVD, whose signs may differ in another library and "
    "would give another adapter"
)


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """PSOFT; A and B are not in the file, but come from an SVD of the base, as in PEFT."""
    (numbers,) = required(factors, "psoft_R.weight")
    values, config = file.config.values, file.config
    rank, is_bound = values["r"], _is_on(values, "psoft_orth")
    expected = (rank * (rank - 1) // 2,) if is_bound else (rank, rank)
    vectors = [_vector(values, factors, side, rank) for side in "ba"]
    if numbers.shape != expected:
        raise ShapeError(f"psoft_R.weight has shape {numbers.shape}, expected {expected} by r")
    scale = values["psoft_alpha"] / rank
    if not scale:
        raise CheckpointError(
            "psoft_alpha is 0, by which PEFT divides the base's singular values, expected another "
            "number. Was the config edited?"
        )
    a, b = _subspace(file, site, rank, scale)
    is_series = is_bound and config.flag("use_cayley_neumann")
    terms = values.get("num_cayley_neumann_terms", 5) if is_series else None
    eps = values.get("cayley_neumann_eps") if is_series else None
    eps = None if eps is None else float(eps)
    return PSOFT(a, b, numbers, scale, *vectors, terms=terms, eps=eps)


def _is_on(values: Mapping[str, Any], field: str) -> bool:
    """A field that is true where it is absent."""
    return values.get(field) is not False


def _vector(values: Mapping[str, Any], factors: SiteTensors, side: str, rank: int) -> Any:
    """The magnitudes of one side of R, if the config has them on."""
    name, is_on = f"psoft_R.vector_{side}", _is_on(values, f"psoft_mag_{side}")
    vector = factors.get(name)
    if (vector is not None) != is_on:
        state, setting = "present" if vector is not None else "missing", str(is_on).lower()
        raise CheckpointError(f"{name} is {state}, but psoft_mag_{side} is {setting} in the config")
    if vector is not None and vector.shape != (rank,):
        raise ShapeError(f"{describe_shapes({name: vector})}, expected ({rank},) by the config's r")
    return vector


def _subspace(file: File, site: str, rank: int, scale: float) -> tuple[Any, Any]:
    """A and B, as PEFT computes them from the base's weight in float32.

    The signs of singular vectors depend on the LAPACK: those of NumPy and torch differ for one in
    fifteen. With another sign the same R is another update, so torch's SVD is used.
    """
    matrix, values = np.array(file.weight(site), np.float32), file.config.values
    if matrix.ndim != 2 or rank > min(matrix.shape):
        raise ShapeError(
            f"the base's weight at {site} has shape {matrix.shape}, expected a matrix of at "
            f"least {rank} rows and columns, by the config's r"
        )
    torch = file.torch("A and B", _HOW)
    weight = torch.from_numpy(matrix)
    if values.get("psoft_svd") == "lowrank":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(values.get("random_seed", 0))
            niter = values.get("psoft_svd_lowrank_niter", 10)
            u, s, v = torch.svd_lowrank(weight, q=rank, niter=niter)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    u, s, vh = (x.numpy() for x in (u[:, :rank], s[:rank] / scale, vh[:rank]))
    if values.get("ab_svd_init") == "pissa_init":
        root = np.sqrt(s)
        return root[:, None] * vh, u * root
    return vh, u * s


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Refuses to write, since PEFT's file does not contain A and B."""
    raise UnsupportedError(
        "a file of PEFT's PSOFT leaves out A and B, and PEFT would compute others from its base. "
        f"Convert these to a LoRA, {to_lora_call()}, "
        f"without loss:{listing(updates)}"
    )


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "ab_svd_init": one_of("psoft_init", "pissa_init"),
            "cayley_neumann_eps": BOUND._replace(is_required=False),
            "num_cayley_neumann_terms": TERMS,
            "psoft_alpha": NUMBER,
            "psoft_mag_a": FLAG,
            "psoft_mag_b": FLAG,
            "psoft_orth": FLAG,
            "psoft_svd": one_of("full", "lowrank"),
            "psoft_svd_lowrank_niter": ROUNDS,
            "r": COUNT,
            "random_seed": INTEGER._replace(is_required=False),
            "use_cayley_neumann": FLAG,
            **SAVED,
        },
        ABOUT | WHERE | {"fan_in_fan_out", "init_weights", "psoft_dropout"},
    ),
    ("psoft_R.weight", "psoft_R.vector_a", "psoft_R.vector_b"),
    _build,
    _write,
)
