"""UniLoRA's indices where the file leaves them out: dealt to the base's modules as PEFT does."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmix.converters.adapters.base import BaseModel
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.model_order import modules_of, order_problem
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.converters.adapters.peft.targets import TARGETS, targeted
from jaxmix.converters.adapters.peft.values import Check
from jaxmix.errors import CheckpointError, ShapeError, listing

__all__ = ["DEALING", "THETA", "dealt", "vector"]

THETA = "unilora_theta_d"

# What is asked for where indices are dealt, and only there.
DEALING = {
    **TARGETS,
    "proj_seed": Check(
        "a whole number from 0 on",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        False,
    ),
}
# So many numbers are dealt whatever the base: no tensor of the file says what the rank is.
_ALWAYS = 2**24
_SAVED = (
    "save it with PEFT with its indices: model.peft_config['default'].save_indices = True, and for "
    "each layer's unilora_indices_A, unilora_indices_B, unilora_scales_A and unilora_scales_B "
    "persistent = True."
)
_GIVE = (
    "Give the model's leaves in the model's order, from torch: jaxmix.load(…, base={name: array "
    "for name, array in model.state_dict().items()}); jaxmix.save then writes the adapter with its "
    f"indices. Or {_SAVED}"
)


def dealt(file: File) -> dict[str, Factors]:
    """The indices and scales of all sites of a file that has but the vector.

    Args:
        file: a UniLoRA's; its base in the order of the model's own modules.

    Returns:
        ``{site: {parameter: array}}``, the scales in the dtype of the base's weight as in PEFT;
        nothing, if the config says that the file has them.

    Raises:
        CheckpointError: if there is no base, or its order or what of it is adapted is not certain.
        ShapeError: if the vector is not as long as the config says.

    Source: https://arxiv.org/abs/2506.00799; ``peft/tuners/unilora/model.py``.
    """
    values, path = file.config.values, file.config.path
    if values.get("save_indices") or (file.sites and values.get("save_indices") is None):
        return {}
    if file.sites:
        raise CheckpointError(
            f"{path}: save_indices is false, but the file has indices, which PEFT then passes "
            f"over:{listing(file.sites)}\nSet it to true if they are the adapter's, or take them "
            "out of the file."
        )
    if values.get("proj_seed") is None:
        raise CheckpointError(
            f"{path}: proj_seed is missing, from which PEFT draws what the file leaves out. Take "
            "the config that save_pretrained wrote."
        )
    vector(file, f"{path.parent}: ")
    base = _in_order(file)
    sites = targeted(file.config, modules_of(base.order))
    if problem := order_problem(base.order, sites):
        raise CheckpointError(f"{path.parent}: {_why(f'{base.what}, {problem}')}")
    return _deal(file, _sizes(file, base, sites))


def vector(file: File, where: str = "") -> Any:
    """The vector that all sites share, of the length that the config says.

    Args:
        file: a UniLoRA's.
        where: how a message begins.

    Raises:
        CheckpointError: if it is missing.
        ShapeError: if it has another length.
    """
    theta, length = file.shared.get(THETA), file.config.values["theta_d_length"]
    if theta is None:
        raise CheckpointError(f"{where}{THETA} missing, which all sites share")
    if theta.shape != (length,):
        expected = f"({length},) from the config"
        raise ShapeError(f"{where}{THETA} has shape {theta.shape}, expected {expected}")
    return theta


def _in_order(file: File) -> BaseModel:
    """The base, if it has an order."""
    if file.base is None or not file.base.order:
        found = "no base" if file.base is None else f"{file.base.what}, which has no order"
        raise CheckpointError(f"{file.config.path.parent}: {_why(found)}")
    return file.base


def _why(found: str) -> str:
    """Why an order is asked for, and what to do."""
    return (
        "save_indices = false: the file has one vector and no word of the modules. PEFT deals its "
        "numbers out to them in the order in which the model makes its modules; found "
        f"{found}. {_GIVE}"
    )


def _sizes(file: File, base: BaseModel, sites: Sequence[str]) -> dict[str, tuple[int, int, Any]]:
    """Output, input and dtype of the sites; each of which must be one linear layer of its own."""
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
        some = weight.ravel()[:: max(1, weight.size // 4096)]
        twins[weight.shape, some.tobytes()].append(site)
    if wrong:
        raise CheckpointError(
            f"{file.config.path.parent}: modules for which the config asks, and which are no "
            f"linear layers in {base.what}:{listing(wrong)}\nExpected floats (out, in), or (in, "
            "out) of GPT-2's Conv1D. Give the base on which "
            f"the adapter was trained. Or {_SAVED}"
        )
    if same := [" = ".join(names) for names in twins.values() if len(names) > 1]:
        raise CheckpointError(
            f"{file.config.path.parent}: modules with the same weights in {base.what}:"
            f"{listing(same)}\nOne module under two names PEFT adapts once, two modules twice, and "
            f"a state_dict does not say which these are. Expected others: {_SAVED}"
        )
    return sizes


def _deal(file: File, sizes: dict[str, tuple[int, int, Any]]) -> dict[str, Factors]:
    """Every number of the vector as often as any other, shuffled, to A and B of one site, then on.

    What is divided by is how often a number occurs, in float32 as in PEFT.
    """
    values = file.config.values
    rank, length = values["r"], values["theta_d_length"]
    count = sum(rank * (out_size + in_size) for out_size, in_size, _ in sizes.values())
    most = max(_ALWAYS, 4 * sum(out_size * in_size for out_size, in_size, _ in sizes.values()))
    if count > most:
        raise ShapeError(
            f"{file.config.path}: r = {rank} makes {count:,} numbers for the {len(sizes)} modules "
            f"that it adapts in {file.base.what if file.base else 'its base'}, expected {most:,} "
            "at the most: no other tensor of the file has this rank. Was the config edited?"
        )
    indices = _shuffled(count, length, values["proj_seed"])
    often = np.bincount(indices, minlength=length).astype(np.float32)
    scales = 1 / np.sqrt(np.maximum(often, 1))  # what does not occur is not asked for
    made: dict[str, Factors] = {}
    start = 0
    for site, (out_size, in_size, dtype) in sizes.items():
        made[site] = {}
        for side, shape in (("A", (rank, in_size)), ("B", (out_size, rank))):
            own = indices[start : start + shape[0] * shape[1]].reshape(shape)
            made[site][f"unilora_indices_{side}"] = own
            made[site][f"unilora_scales_{side}"] = scales[own].astype(dtype)
            start += own.size
    return made


def _shuffled(count: int, length: int, seed: int) -> np.ndarray:
    """So many indices below a length, each as often as the others or once more."""
    rng = np.random.default_rng(seed)
    whole, rest = divmod(count, length)
    indices = np.repeat(np.arange(length, dtype=np.int64), whole)
    if rest:
        indices = np.concatenate([indices, rng.choice(length, size=rest, replace=False)])
    rng.shuffle(indices)
    return indices
