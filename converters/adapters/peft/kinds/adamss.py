"""PEFT's AdaMSS, whose groups of rows are found by clustering the base's weight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, need, shapes
from jaxmix.converters.adapters.peft.values import COUNT, INTEGER
from jaxmix.errors import CheckpointError, ShapeError
from jaxmix.families import AdaMSS
from jaxmix.families.adamss import grouped

__all__ = ["KIND"]


def _build(file: File, site: str, factors: Factors) -> AdaMSS:
    """AdaMSS: one A and one B for each group, and one projection of the input."""
    (projection,) = need(factors, "adamss_newB")
    count = len([name for name in factors if name.startswith("adamss_A.")])
    a = need(factors, *(f"adamss_A.{i}" for i in range(count)))
    b = need(factors, *(f"adamss_B.{i}" for i in range(count)))
    in_size = file.shape(site)[1]
    extra = projection.shape[1] - in_size if projection.ndim == 2 else -1
    if extra not in (0, 1) or any(x.ndim != 2 for x in (*a, *b)) or not count:
        raise ShapeError(
            f"{shapes(factors)}, expected adamss_newB (r, {in_size}), or one column more with a "
            "bias, adamss_A (rᵢ, r) and adamss_B (rows, rᵢ)"
        )
    rows = _groups(file, site, bool(extra))
    sizes = [len(group) for group in rows]
    if sizes != [len(x) for x in b]:
        raise CheckpointError(
            f"the groups of rows found in the base have {sizes} rows, adamss_B have "
            f"{[len(x) for x in b]}. PEFT does not save which rows they are, but finds them with "
            "torch and scikit-learn, whose versions may differ. Is it the base that it was trained "
            "on? Else merge it with PEFT (merge_and_unload) where it was trained"
        )
    bias = projection[:, in_size] if extra else None
    order: Any = np.concatenate(rows).astype(np.int32)
    seed = file.config.values["random_seed"]
    return AdaMSS(a, b, projection[:, :in_size], order, bias, seed)


def _groups(file: File, site: str, has_bias: bool) -> list[np.ndarray]:
    """The rows of each group, found as PEFT does: k-means over the base's left singular vectors."""
    file.torch("which rows its groups have")
    weight = np.asarray(file.weight(site), np.float32)
    if has_bias:
        weight = np.concatenate([weight, np.asarray(file.bias(site), np.float32)[:, None]], 1)
    said = file.config.values
    try:
        _, _, rows = grouped(weight, said["r"], said["num_subspaces"], said["random_seed"])
    except ImportError as error:
        raise CheckpointError(
            f"{file.config.path.parent} leaves out which rows its groups have: PEFT finds them "
            "anew with scikit-learn's k-means. Install it (pip install scikit-learn) and load it "
            "once; jaxmix.save writes it with them"
        ) from error
    return rows


def _write(updates: Mapping[str, Any]) -> Written:
    """PEFT finds the same rows again on the same base, with the same seed."""
    said = (
        "PEFT stores no rows of the groups but finds them with a seed; those of these come from no "
        "seed. Export them as LoRA (jaxmix.to_lora)"
    )
    unless(updates, lambda update: update.seed is not None, said)
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        for name, side in (("adamss_A", update.a), ("adamss_B", update.b)):
            tensors |= {f"{site}.{name}.{i}": array for i, array in enumerate(side)}
        parts = [np.asarray(update.projection)]
        if update.bias is not None:
            parts.append(np.asarray(update.bias)[:, None])
        tensors[f"{site}.adamss_newB"] = np.concatenate(parts, 1)
    fields = {
        "num_subspaces": same(updates, "num_subspaces", lambda update: len(update.a)),
        "r": max(update.projection.shape[0] for update in updates.values()),
        "random_seed": same(updates, "random_seed", lambda update: update.seed),
        "subspace_rank": max(a.shape[0] for update in updates.values() for a in update.a),
    }
    return Written(fields, tensors)


KIND = Kind(
    Fields(
        {"num_subspaces": COUNT, "r": COUNT, "random_seed": INTEGER, **SAVED},
        ABOUT
        | (WHERE - {"exclude_modules"})
        | frozenset(
            "asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta "
            "final_warmup init_warmup init_weights mask_interval subspace_rank svd_threshold "
            "use_asa use_dynamic_rank".split()
        ),
    ),
    ("adamss_A.*", "adamss_B.*", "adamss_newB"),
    _build,
    _write,
)
