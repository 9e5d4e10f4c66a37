"""PEFT's AdaMSS, whose groups of rows come from clustering the base's weight."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, INTEGER
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError, remedy, to_lora_call
from jaxmix.families import AdaMSS
from jaxmix.families.adamss import grouped

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> AdaMSS:
    """AdaMSS; one A and one B per group, and one projection of the input."""
    (projection,) = required(factors, "adamss_newB")
    count = len([name for name in factors if name.startswith("adamss_A.")])
    a = required(factors, *(f"adamss_A.{i}" for i in range(count)))
    b = required(factors, *(f"adamss_B.{i}" for i in range(count)))
    in_size = file.shape(site)[1]
    extra = projection.shape[1] - in_size if projection.ndim == 2 else -1
    if extra not in (0, 1) or any(x.ndim != 2 for x in (*a, *b)) or not count:
        raise ShapeError(
            f"{describe_shapes(factors)}, expected adamss_newB (r, {in_size}), with one more "
            "column for a bias, adamss_A (rᵢ, r) and adamss_B (rows, rᵢ)"
        )
    rows = _groups(file, site, bool(extra))
    sizes = [len(group) for group in rows]
    if sizes != [len(x) for x in b]:
        raise CheckpointError(
            f"the groups of rows computed from the base have {sizes} rows, those of adamss_B "
            f"{[len(x) for x in b]}. PEFT does not save the rows, but computes them with torch and "
            "scikit-learn, whose versions may differ. Is it the base that it was trained on? "
            "Otherwise merge it with PEFT (merge_and_unload) where it was trained"
        )
    bias = projection[:, in_size] if extra else None
    order: Any = np.concatenate(rows).astype(np.int32)
    seed = file.config.values["random_seed"]
    return AdaMSS(a, b, projection[:, :in_size], order, bias, seed)


def _groups(file: File, site: str, has_bias: bool) -> list[np.ndarray]:
    """The rows of each group, by k-means of the base's left singular vectors as in PEFT."""
    file.torch("the rows of its groups", "computes from the base")
    weight = np.asarray(file.weight(site), np.float32)
    if has_bias:
        weight = np.concatenate([weight, np.asarray(file.bias(site), np.float32)[:, None]], 1)
    config = file.config.values
    try:
        _, _, rows = grouped(weight, config["r"], config["num_subspaces"], config["random_seed"])
    except ImportError as error:
        raise CheckpointError(
            f"{file.config.path.parent} leaves out the rows of its groups, which PEFT computes "
            "with scikit-learn's k-means. Install it (pip install scikit-learn) and load the "
            f"adapter once; {remedy('jaxmix.save', '`jaxmix convert --to mix`')} includes the rows"
        ) from error
    return rows


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes the seed, with which PEFT computes the same rows from the same base."""
    problem = (
        "PEFT stores a seed instead of the rows of groups, and those of these updates come from no "
        f"seed. Export them as LoRA ({to_lora_call()})"
    )
    refuse_unless(updates, lambda update: update.seed is not None, problem)
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        for name, side in (("adamss_A", update.a), ("adamss_B", update.b)):
            tensors |= {f"{site}.{name}.{i}": array for i, array in enumerate(side)}
        parts = [np.asarray(update.projection)]
        if update.bias is not None:
            parts.append(np.asarray(update.bias)[:, None])
        tensors[f"{site}.adamss_newB"] = np.concatenate(parts, 1)
    fields = {
        "num_subspaces": equal_value(updates, "num_subspaces", lambda update: len(update.a)),
        "r": max(update.projection.shape[0] for update in updates.values()),
        "random_seed": equal_value(updates, "random_seed", lambda update: update.seed),
        "subspace_rank": max(a.shape[0] for update in updates.values() for a in update.a),
    }
    return PeftContent(fields, tensors)


PEFT_TYPE = PeftType(
    ConfigFields(
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
