"""Bases on the command line: a Hugging Face folder as params that are read where they are used."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jaxmix.adapter import Adapter
from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
from jaxmix.converters.checkpoints.huggingface import FLOATS, read_checkpoint
from jaxmix.errors import CheckpointError, listing
from jaxmix.families import AdaLoRA, Delta, LoHa, LoKr, LoRA, Update
from jaxmix.mixing import Mix
from jaxmix.placement.layout import NAMES, Layout, Rule

__all__ = [
    "OWN_LAYOUT",
    "BaseOption",
    "Conv1d",
    "layout_of",
    "mapped",
    "needs_base",
    "params_of",
]

BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base",
        "-b",
        metavar="BASE",
        help="The model that the adapters are for: a Hugging Face folder, one safetensors file, "
        "or a hub id.",
    ),
]

Conv1d = Annotated[
    str | None,
    typer.Option(
        "--conv1d",
        metavar="REGEX",
        help="The modules whose weight the base stores as (in, out), as GPT-2's Conv1D: a regular "
        "expression for their whole names, '' for none. Needed only where neither the base's "
        "config.json nor its shapes tell.",
    ),
]

# In the params that `params_of` makes without a base each site has leaves of its own, so that no
# name says that one is tied to another.
OWN_LAYOUT = Layout(
    "the adapters' own",
    (Rule(r"(.+)", r"\1.weight"), Rule(r"(.+)", r"\1.bias", part="bias")),
    conv1d="",
)


def mapped(base: Path) -> dict[str, np.ndarray]:
    """A base's tensors, memory-mapped: what nobody asks for is not read.

    Args:
        base: a Hugging Face folder.

    Returns:
        ``{name: tensor}`` by PyTorch's names, a weight (out, in). What is not of floats is there as
        its bytes, which nobody takes for a weight.
    """
    files: dict[Path, np.ndarray] = {}
    found: dict[str, np.ndarray] = {}
    for name, tensor in read_checkpoint(base).tensors.items():
        if tensor.file not in files:
            files[tensor.file] = np.memmap(tensor.file, np.uint8, mode="r")
        data = files[tensor.file][tensor.start : tensor.start + tensor.size]
        is_float = tensor.dtype in FLOATS
        found[name] = data.view(FLOATS[tensor.dtype]).reshape(tensor.shape) if is_float else data
    return found


def layout_of(base: Path, conv1d: str | None = None) -> Layout:
    """Where the modules lie among a base's tensors.

    Args:
        base: The base's folder.
        conv1d: What ``--conv1d`` says; if absent, the base's config.json is asked.

    Returns:
        The layout by names, with what is known of `jaxmix.Layout.conv1d`.
    """
    said = conv1d_pattern(read_checkpoint(base)) if conv1d is None else conv1d
    return replace(NAMES, conv1d=said)


def params_of(
    mixed: Adapter | Mix, base: Path | None, conv1d: str | None = None
) -> tuple[Any, Layout]:
    """The params on which a mix can be looked at, and their layout.

    Args:
        mixed: the adapter or the mix.
        base: the base's folder; None for zeros, which serve where nothing reads or turns the base.
        conv1d: What ``--conv1d`` says of the base.

    Returns:
        A flat dict, and the layout.

    Raises:
        CheckpointError: if there is no base, and something asks for it.
    """
    if base is not None:
        return mapped(base), layout_of(base, conv1d)
    if needy := needs_base(mixed):
        raise CheckpointError(
            f"there is no base, and adapters that can't be looked at without:{listing(needy)}\n"
            "Give the model that they are for: --base FOLDER."
        )
    params: dict[str, Any] = {}
    for part in mixed.parts:
        for site, update in part.updates.items():
            shape = _own_shape(update)
            assert shape is not None
            params[f"{site}.weight"] = np.zeros(shape, np.float32)
            if update.has_bias:
                params[f"{site}.bias"] = np.zeros(shape[:1], np.float32)
    return params, OWN_LAYOUT


def needs_base(mixed: Adapter | Mix) -> list[str]:
    """The adapters whose effects ask for the base, each with the reason."""
    found = []
    for part in mixed.parts:
        needy = [
            (site, update) for site, update in part.updates.items() if _own_shape(update) is None
        ]
        if needy:
            site, update = needy[0]
            more = f" and {len(needy) - 1} more" if len(needy) > 1 else ""
            found.append(f"{part.name}: {update.family} {update.size()} at {site}{more}")
    return found


def _own_shape(update: Update) -> tuple[int, int] | None:
    """The weight (out, in) that an update is for, if it says so by itself and only adds to it."""
    shape = None if update.reads_base else _guess(update)
    return None if shape is None or update.misfit(shape) else shape


def _guess(update: Update) -> tuple[int, int] | None:
    """The shape that the factors of the commonest additive kinds are for; None for all others."""
    match update:
        case LoRA() | AdaLoRA():
            return _shape(update.b, update.a)
        case LoHa():
            return _shape(update.b1, update.a1)
        case LoKr():
            outer, inner = (_shape(side[0], side[-1]) for side in (update.x, update.y))
            return outer[0] * inner[0], outer[1] * inner[1]
        case Delta() if update.weight is not None:
            return _shape(update.weight, update.weight)
        case _:
            return None


def _shape(b: Any, a: Any) -> tuple[int, int]:
    """The rows of the one, the columns of the other."""
    return b.shape[0], math.prod(a.shape[1:])
