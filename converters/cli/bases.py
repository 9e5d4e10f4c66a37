"""Opens the base of a command line as memory-mapped params."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxmix.errors import CheckpointError, listing

if TYPE_CHECKING:  # help and shell completion do without JAX
    import numpy as np

    from jaxmix.adapter import Adapter
    from jaxmix.families import Update
    from jaxmix.mixing import Mix
    from jaxmix.placement.layout import Layout

__all__ = [
    "BaseOption",
    "Conv1d",
    "Names",
    "Variant",
    "base_layout",
    "base_params",
    "map_tensors",
    "needs_base",
    "own_layout",
]

BaseOption = Annotated[
    str | None,  # a `Path` would lose a leading "./"
    typer.Option(
        "--base",
        "-b",
        metavar="BASE",
        help="The model that the adapters were trained on: the folder of a model or a pipeline, a "
        "safetensors file, or a hub id.",
    ),
]

Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="Which of several variants of the base's weights to read, as in diffusers: `fp16`. By "
        "default the files without a variant.",
    ),
]

Conv1d = Annotated[
    str | None,
    typer.Option(
        "--conv1d",
        metavar="REGEX",
        help="The modules whose weight the base stores as (in, out), like GPT-2's Conv1D: a "
        "regular expression for their full names, '' for none. Needed only if neither the base's "
        "config.json nor its shapes determine them.",
    ),
]

Names = Annotated[
    str | None,
    typer.Option(
        "--names",
        metavar="TYPE",
        help="How transformers renames the base's tensors when it loads them: a model type such as "
        "`mixtral`, or '' if not at all. By default what the base's config.json names.",
    ),
]


def own_layout() -> "Layout":
    """Returns the layout of the params that `base_params` makes without a base.

    Each site has its own leaves, so the layout must not infer ties from names.
    """
    from jaxmix.placement.layout import Layout, Rule

    rules = (Rule(r"(.+)", r"\1.weight"), Rule(r"(.+)", r"\1.bias", part="bias"))
    return Layout("the adapters' own", rules, conv1d="")


def map_tensors(base: str, variant: str | None = None) -> "dict[str, np.ndarray]":
    """Memory-maps a base's tensors, which are read only when they are used.

    Args:
        base: The folder of a model or a pipeline.
        variant: The value of ``--variant``.

    Returns:
        ``{name: tensor}`` by PyTorch name, with weights (out, in). Tensors that are not of floats
        are arrays of bytes, which are not treated as weights.
    """
    import numpy as np

    from jaxmix.converters.checkpoints.huggingface import FLOATS, read_checkpoint

    files: dict[Path, np.ndarray] = {}
    tensors_by_name: dict[str, np.ndarray] = {}
    for name, tensor in read_checkpoint(base, variant).tensors.items():
        if tensor.file not in files:
            files[tensor.file] = np.memmap(tensor.file, np.uint8, mode="r")
        data = files[tensor.file][tensor.start : tensor.start + tensor.size]
        is_float = tensor.dtype in FLOATS
        tensors_by_name[name] = (
            data.view(FLOATS[tensor.dtype]).reshape(tensor.shape) if is_float else data
        )
    return tensors_by_name


def base_layout(base: str, conv1d: str | None = None, variant: str | None = None) -> "Layout":
    """Returns the layout of a base's tensors.

    Args:
        base: The base's folder.
        conv1d: The value of ``--conv1d``; if absent, it is taken from the base's config.json.
        variant: The value of ``--variant``.

    Returns:
        The layout by names, with `jaxmix.Layout.conv1d` where it is known.
    """
    from jaxmix.converters.checkpoints.conv1d import conv1d_pattern
    from jaxmix.converters.checkpoints.huggingface import read_checkpoint
    from jaxmix.placement.layout import NAMES

    pattern = conv1d_pattern(read_checkpoint(base, variant)) if conv1d is None else conv1d
    return replace(NAMES, conv1d=pattern)


def base_params(
    mixed: "Adapter | Mix",
    base: str | None,
    conv1d: str | None = None,
    variant: str | None = None,
) -> "tuple[Any, Layout]":
    """Returns params to which a mix can be applied, and their layout.

    Args:
        mixed: The adapter or mix.
        base: The base's folder; None for zeros, which suffice if no update reads or rotates the
            base.
        conv1d: The value of ``--conv1d``.
        variant: The value of ``--variant``.

    Returns:
        A flat dict, and the layout.

    Raises:
        CheckpointError: If ``base`` is None and an update needs it.
    """
    import numpy as np

    if base is not None:
        return map_tensors(base, variant), base_layout(base, conv1d, variant)
    if needy := needs_base(mixed):
        raise CheckpointError(
            f"these adapters need the base, which is not given:{listing(needy)}\n"
            "Pass the model that they were trained on: --base FOLDER."
        )
    params: dict[str, Any] = {}
    for part in mixed.parts:
        for site, update in part.updates.items():
            shape = _own_shape(update)
            assert shape is not None
            params[f"{site}.weight"] = np.zeros(shape, np.float32)
            if update.has_bias:
                params[f"{site}.bias"] = np.zeros(shape[:1], np.float32)
    return params, own_layout()


def needs_base(mixed: "Adapter | Mix") -> list[str]:
    """Describes the adapters whose effects depend on the base."""
    lines = []
    for part in mixed.parts:
        needy = [
            (site, update) for site, update in part.updates.items() if _own_shape(update) is None
        ]
        if needy:
            site, update = needy[0]
            more = f" and {len(needy) - 1} more" if len(needy) > 1 else ""
            lines.append(f"{part.name}: {update.family} {update.size()} at {site}{more}")
    return lines


def _own_shape(update: "Update") -> tuple[int, int] | None:
    """Returns the shape (out, in) of an additive update's weight, if its factors determine it."""
    shape = None if update.reads_base else _factors_shape(update)
    return None if shape is None or update.misfit(shape) else shape


def _factors_shape(update: "Update") -> tuple[int, int] | None:
    """Returns the shape of the update for the most common additive kinds; None for others."""
    from jaxmix.families import AdaLoRA, Delta, LoHa, LoKr, LoRA

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
    """Returns the rows of B and the columns of A."""
    return b.shape[0], math.prod(a.shape[1:])
