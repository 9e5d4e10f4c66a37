"""Computes UniLoRA's indices, if the file leaves them out, from the base's modules as PEFT does."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.converters.adapters.common.base_model import BaseModel
from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.values import Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.model_order import modules_of, order_problem
from jaxmix.converters.adapters.peft.targets import TARGETS, targeted
from jaxmix.errors import CheckpointError, ShapeError, listing, remedy

__all__ = ["DEALING", "THETA", "dealt", "vector"]

THETA = "unilora_theta_d"

# The fields that are needed only to compute the indices.
DEALING = {
    **TARGETS,
    "proj_seed": Check(
        "a non-negative integer",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        False,
    ),
}
# This many indices are allowed for any base, since no tensor of the file bounds the rank.
_ALWAYS = 2**24
_SAVED = (
    "save it with PEFT with its indices: model.peft_config['default'].save_indices = True, and for "
    "each layer's unilora_indices_A, unilora_indices_B, unilora_scales_A and unilora_scales_B "
    "persistent = True."
)
_PASS_BASE = (
    "Pass the model's leaves in the model's order, from torch: jaxmix.load(…, base={name: array "
    "for name, array in model.state_dict().items()}); jaxmix.save then writes the adapter with its "
    f"indices. Or {_SAVED}"
)
# A file on disk has no order, so this is all that the command line can do.
_SAVE_INDICES = f"S{_SAVED[1:]}"


def dealt(file: File) -> dict[str, SiteTensors]:
    """Returns the indices and scales of all sites, for a file with only the vector.

    Args:
        file: The file of a UniLoRA, whose base must have the model's own order.

    Returns:
        ``{site: {parameter: array}}``, the scales in the dtype of the base's weight as in PEFT;
        empty if the file has them according to the config.

    Raises:
        CheckpointError: If there is no base, or its order or its adapted modules are uncertain.
        ShapeError: If the vector's length differs from the config's.

    Source: https://arxiv.org/abs/2506.00799; ``peft/tuners/unilora/model.py``.
    """
    values, path = file.config.values, file.config.path
    if values.get("save_indices") or (file.sites and values.get("save_indices") is None):
        return {}
    if file.sites:
        raise CheckpointError(
            f"{path}: save_indices is false, but the file has indices, which PEFT then ignores:"
            f"{listing(file.sites)}\nSet it to true if they belong to the adapter, or remove them "
            "from the file."
        )
    if values.get("proj_seed") is None:
        raise CheckpointError(
            f"{path}: proj_seed is missing, from which PEFT draws the indices that the file leaves "
            "out. Use the config that save_pretrained wrote."
        )
    vector(file, f"{path.parent}: ")
    base = _in_order(file)
    sites = targeted(file.config, modules_of(base.order))
    if problem := order_problem(base.order, sites):
        raise CheckpointError(f"{path.parent}: {_order_needed(f'{base.description}, {problem}')}")
    return _deal(file, _sizes(file, base, sites))


def vector(file: File, where: str = "") -> Any:
    """Returns the vector that all sites share, after checking its length.

    Args:
        file: The file of a UniLoRA.
        where: The beginning of the message.

    Raises:
        CheckpointError: If it is missing.
        ShapeError: If its length differs from the config's.
    """
    theta, length = file.shared.get(THETA), file.config.values["theta_d_length"]
    if theta is None:
        raise CheckpointError(f"{where}{THETA} is missing, which all sites share")
    if theta.shape != (length,):
        expected = f"({length},) from the config"
        raise ShapeError(f"{where}{THETA} has shape {theta.shape}, expected {expected}")
    return theta


def _in_order(file: File) -> BaseModel:
    """Returns the base, which must have an order."""
    if file.base is None or not file.base.order:
        problem = "no base" if file.base is None else f"{file.base.description}, which has no order"
        raise CheckpointError(f"{file.config.path.parent}: {_order_needed(problem)}")
    return file.base


def _order_needed(problem: str) -> str:
    """Explains why an order is needed, and what to do."""
    return (
        "save_indices = false: the file has one vector and no modules. PEFT assigns its numbers to "
        "the modules in the model's own order, which the base must have; found "
        f"{problem}. {remedy(_PASS_BASE, _SAVE_INDICES)}"
    )


def _sizes(file: File, base: BaseModel, sites: Sequence[str]) -> dict[str, tuple[int, int, Any]]:
    """Outputs, inputs and dtype of each site, which must be a linear layer with its own weight."""
    sizes: dict[str, tuple[int, int, Any]] = {}
    twins: dict[Any, list[str]] = defaultdict(list)
    wrong = []
    for site in sites:
        if f"{site}.weight" not in base.order or site not in base.shapes:
            wrong.append(f"{site}: no {site}.weight")
            continue
        weight, bias = file.weight(site), base.read_bias(site)
        if weight.ndim != 2 or not jnp.issubdtype(weight.dtype, jnp.floating):
            wrong.append(f"{site}: weight {weight.shape} {weight.dtype}")
            continue
        out_size, in_size = file.sizes(site)
        if bias is not None and bias.shape != (out_size,):
            wrong.append(f"{site}: weight {weight.shape}, bias {bias.shape}")
        sizes[site] = out_size, in_size, weight.dtype
        sample = weight.ravel()[:: max(1, weight.size // 4096)]
        twins[weight.shape, sample.tobytes()].append(site)
    if wrong:
        raise CheckpointError(
            f"{file.config.path.parent}: modules that the config targets but that are not linear "
            f"layers in {base.description}:{listing(wrong)}\nExpected floats (out, in), or (in, "
            "out) for GPT-2's Conv1D. Was the adapter trained on another model? Or "
            f"{_SAVED}"
        )
    if duplicates := [" = ".join(names) for names in twins.values() if len(names) > 1]:
        raise CheckpointError(
            f"{file.config.path.parent}: modules with the same weights in {base.description}:"
            f"{listing(duplicates)}\nPEFT adapts one module with two names once, but two modules "
            "twice, and a state_dict does not distinguish them. Use another file: "
            f"{_SAVED}"
        )
    return sizes


def _deal(file: File, sizes: dict[str, tuple[int, int, Any]]) -> dict[str, SiteTensors]:
    """Assigns shuffled indices to A and B of each site; each number of the vector is used equally.

    The scale of a number is one over the root of its count, in float32 as in PEFT.
    """
    values = file.config.values
    rank, length = values["r"], values["theta_d_length"]
    count = sum(rank * (out_size + in_size) for out_size, in_size, _ in sizes.values())
    most = max(_ALWAYS, 4 * sum(out_size * in_size for out_size, in_size, _ in sizes.values()))
    if count > most:
        model = file.base.description if file.base else "its base"
        raise ShapeError(
            f"{file.config.path}: r = {rank} makes {count:,} numbers for the {len(sizes)} modules "
            f"that it adapts in {model}, expected at most {most:,}: no other tensor of the file "
            "has this rank. Was the config edited?"
        )
    indices = _shuffled(count, length, values["proj_seed"])
    counts = np.bincount(indices, minlength=length).astype(np.float32)
    scales = 1 / np.sqrt(np.maximum(counts, 1))  # unused numbers have no effect
    tensors: dict[str, SiteTensors] = {}
    start = 0
    for site, (out_size, in_size, dtype) in sizes.items():
        tensors[site] = {}
        for side, shape in (("A", (rank, in_size)), ("B", (out_size, rank))):
            block = indices[start : start + shape[0] * shape[1]].reshape(shape)
            tensors[site][f"unilora_indices_{side}"] = block
            tensors[site][f"unilora_scales_{side}"] = scales[block].astype(dtype)
            start += block.size
    return tensors


def _shuffled(count: int, length: int, seed: int) -> np.ndarray:
    """Indices below a length, shuffled; each occurs equally often, or once more."""
    rng = np.random.default_rng(seed)
    rounds, remainder = divmod(count, length)
    indices = np.repeat(np.arange(length, dtype=np.int64), rounds)
    if remainder:
        indices = np.concatenate([indices, rng.choice(length, size=remainder, replace=False)])
    rng.shuffle(indices)
    return indices
