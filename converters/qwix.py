"""qwix's LoRA, and so tunix's and MaxText's: two leaves beside the one they are for.

Orientation: ``kernel_lora_a`` (in, r), ``kernel_lora_b`` (r, out); with scanned layers one axis
more.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmix.adapter import Adapter
from jaxmix.converters.lycoris.files import file_keys, file_metadata, json_of
from jaxmix.converters.orbax_sizes import check_sizes
from jaxmix.converters.peft.tensors import FLOATS, read_tensors
from jaxmix.converters.peft.values import NUMBER
from jaxmix.errors import AdapterError, CheckpointError, ShapeError, listing, option
from jaxmix.families import LoRA, Update
from jaxmix.files import read_small
from jaxmix.names import leaf_names

__all__ = ["is_qwix", "qwix_adapter", "read_qwix"]

_FACTOR = re.compile(r"(?P<leaf>.+?)(?:_lora_(?P<new>[ab])|\.lora_(?P<old>[ab])\.kernel)")
# A weight by these names is its module's; by any other it has a name of its own in it.
_WEIGHTS = ("kernel", "w", "weight", "embedding")
# What Orbax writes into a checkpoint's folder.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


class _Pair(NamedTuple):
    """The two factors of a leaf."""

    a: Any
    b: Any


def is_qwix(path: Path) -> bool:
    """Whether a safetensors has qwix's leaves, or a folder is an Orbax checkpoint."""
    if path.is_file():
        return any(_FACTOR.fullmatch(_dotted(key)) for key in file_keys(path))
    return any((folder / name).exists() for folder in _steps(path) for name in _ORBAX)


def read_qwix(
    path: Path,
    name: str,
    strength: Any = 1.0,
    *,
    alpha: float | None = None,
    axis: int | None = None,
) -> Adapter:
    """Reads LoRA leaves that qwix made, from an Orbax checkpoint or a safetensors file.

    Args:
        path: MaxText's folder of a run's step (``0`` or ``0/items``), any Orbax checkpoint of the
            LoRA leaves, or a safetensors whose keys are their paths.
        name: what to call the adapter.
        strength: the strength with which it enters a mix, a real scalar.
        alpha: the alpha of qwix's rule; MaxText keeps it beside the checkpoint, where it is read.
        axis: the axis along which layers are stacked, where shapes leave it open.

    Returns:
        The adapter: `qwix_adapter` of the leaves.

    Raises:
        CheckpointError: if it can't be read, has no alpha, or leaves that are no factors.
        ShapeError: if two factors do not fit each other.
        AdapterError: if a number is not finite.

    Example:
        >>> read_qwix(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder is no Orbax checkpoint that can be read: ...

    Source: google/qwix, ``qwix/_src/providers/lora.py``; AI-Hypercomputer/maxtext,
    ``maxtext/utils/lora_utils.py``.
    """
    if path.is_file():
        tree: Any = read_tensors(path)
        if other := [key for key in tree if not _FACTOR.fullmatch(_dotted(key))]:
            raise CheckpointError(
                f"{path}: tensors that are no factors of qwix's:{listing(other)}\nExpected "
                "<leaf>_lora_a and <leaf>_lora_b alone. Leave the others out, or give the tree to "
                "jaxmix.converters.qwix.qwix_adapter, which leaves them aside."
            )
        said: dict[str, Any] = dict(file_metadata(path))
    else:
        tree, said = _restored(path)
    beside = next((said[key] for key in ("lora_alpha", "alpha") if key in said), None)
    if isinstance(beside, str):
        beside = json_of(beside)
    given: Any = beside if alpha is None else alpha
    if not NUMBER.holds(given):
        raise CheckpointError(
            f"{path}: qwix keeps alpha in its rule and not with the factors, and nothing beside "
            f"them says it (found {beside!r}). Give it: {option('alpha', ..., of='load(path')}."
        )
    if alpha is not None and isinstance(beside, int | float) and beside != alpha:
        raise CheckpointError(
            f"{path}: alpha = {alpha} was given, and beside the factors stands {beside}, which "
            "MaxText refuses too. Leave it out, or give that."
        )
    return qwix_adapter(tree, name, alpha=given, axis=axis, where=str(path)) * strength


def qwix_adapter(
    tree: Any, name: str = "qwix", *, alpha: float, axis: int | None = None, where: str = "the tree"
) -> Adapter:
    """The adapter in a tree with qwix's LoRA leaves; leaves that are none are left aside.

    Args:
        tree: a params tree, an ``nnx.State`` as pure dict, or a flat dict of paths.
        name: what to call the adapter.
        alpha: the alpha of qwix's rule; the scale is alpha / rank.
        axis: the axis along which layers are stacked, where shapes leave it open.
        where: what the tree is, for messages.

    Returns:
        The adapter. A site is named by its leaf's path (``kernel`` at its end left out); of
        stacked layers each has a site, its number after the word that ends in ``layers``.

    Raises:
        CheckpointError: if a factor is alone, or none is there.
        ShapeError: if two factors do not fit each other.
        AdapterError: if a number is not finite.

    Example:
        >>> tree = {"proj": {"kernel_lora_a": np.ones((3, 1)), "kernel_lora_b": np.ones((1, 2))}}
        >>> qwix_adapter(tree, alpha=2.0).updates["proj"].scale
        2.0
    """
    updates: dict[str, Update] = {}
    wrong: list[str] = []
    for leaf, pair in _pairs(tree, where).items():
        try:
            for site, update in _updates(leaf, pair, float(alpha), axis):
                if site in updates:
                    wrong.append(f"{leaf}: a second one for the site {site}")
                updates[site] = update
        except ShapeError as error:
            wrong.append(f"{leaf}: {error}")
    if wrong:
        raise ShapeError(
            f"{where}: factors that do not fit each other:{listing(wrong)}\nExpected lora_a "
            "(in …, r) and lora_b (r, out …), or of stacked layers (layers, in …, r) and (layers, "
            "r, out …), or (in, layers …, r) and (r, layers, out …). With axis=0 or axis=1 say "
            "which, where both are possible."
        )
    return Adapter(updates, name=name)


def _pairs(tree: Any, where: str) -> dict[str, _Pair]:
    """The factors by leaf."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found: dict[str, dict[str, Any]] = {}
    for text, (_, array) in zip(leaf_names([path for path, _ in leaves]), leaves, strict=True):
        match = _FACTOR.fullmatch(_dotted(text).removesuffix(".value"))
        if match is None:
            if "_lora_" in text:
                raise CheckpointError(
                    f"{where}: {text} is neither <leaf>_lora_a nor <leaf>_lora_b."
                )
            continue
        leaf = match["leaf"].removeprefix("params.")
        leaf = leaf if match["new"] else f"{leaf}.kernel"
        found.setdefault(leaf, {})[match["new"] or match["old"]] = np.asarray(array)
    if not found:
        raise CheckpointError(
            f"{where} has no leaves of qwix's LoRA, expected <leaf>_lora_a and <leaf>_lora_b. Was "
            "it saved without the LoRA parameters?"
        )
    if alone := [f"{leaf}: lora_{x} alone" for leaf, p in found.items() for x in p if len(p) < 2]:
        raise CheckpointError(f"{where}: factors without the other one:{listing(alone)}")
    for leaf, pair in found.items():
        for x, array in pair.items():
            if array.dtype not in FLOATS:
                raise CheckpointError(
                    f"{where}: {leaf}_lora_{x} is of {array.dtype}, expected floats"
                )
            if not np.isfinite(array.astype(np.float64)).all():
                said = f"{where}: {leaf}_lora_{x} has numbers that are NaN or infinite"
                raise AdapterError(f"{said}. Take an earlier checkpoint.")
    return {leaf: _Pair(pair["a"], pair["b"]) for leaf, pair in found.items()}


def _updates(leaf: str, pair: _Pair, alpha: float, axis: int | None) -> list[tuple[str, Update]]:
    """A LoRA for each layer of a leaf."""
    a, b = pair
    if min(a.ndim, b.ndim) < 2 or 0 in (*a.shape, *b.shape):
        raise ShapeError(f"{a.shape} and {b.shape}")
    head, _, last = leaf.rpartition(".")
    site = head if last in _WEIGHTS and head else leaf
    parts = site.split(".")
    stacks = [i for i, part in enumerate(parts) if part.endswith(("layers", "blocks"))]
    at = stacks[-1] + 1 if stacks else None
    is_stack = at is not None and not "".join(parts[at : at + 1]).isdigit() and a.ndim > 2
    if not is_stack or at is None:
        return [(site, _lora(a, b, alpha))]
    where = _layers_axis(a, b, axis)
    count = a.shape[where]
    layers = [(np.take(a, i, where), np.take(b, i, where)) for i in range(count)]
    return [
        (".".join((*parts[:at], str(i), *parts[at:])), _lora(one, two, alpha))
        for i, (one, two) in enumerate(layers)
    ]


def _layers_axis(a: Any, b: Any, axis: int | None) -> int:
    """The axis of the layers: 0 or 1, as the factors' ranks meet."""
    rank = a.shape[-1]
    possible = [
        at
        for at, meets in ((0, b.shape[1] == rank), (1, b.shape[0] == rank))
        if meets and b.ndim > 2 and a.shape[at] == b.shape[at]
    ]
    if axis is not None and axis in possible:
        return axis
    if axis is None and len(possible) == 1:
        return possible[0]
    said = "either axis may be that of the layers" if len(possible) > 1 else "no axis of layers"
    raise ShapeError(f"{a.shape} and {b.shape}: {said}")


def _lora(a: Any, b: Any, alpha: float) -> Update:
    """One pair, of a matrix or of an einsum's several axes."""
    rank = a.shape[-1]
    if b.shape[0] != rank or (a.ndim > 2 and b.ndim > 2 and a.shape[1] == b.shape[1]):
        # An axis that both have is a batch: each head its own LoRA, which no one matrix is.
        raise ShapeError(f"{a.shape} and {b.shape}")
    return LoRA(a.reshape(-1, rank).T, b.reshape(rank, -1).T, alpha / rank)


def _dotted(path: str) -> str:
    """A path with dots, whatever it had."""
    return path.replace("/", ".")


def _steps(path: Path) -> list[Path]:
    """The folders that may hold a checkpoint's own files: it, and MaxText's ``items`` in it."""
    return [path, path / "items", path / "0" / "items"]


def _restored(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """An Orbax checkpoint's tree, and what MaxText wrote beside it."""
    said: dict[str, Any] = {}
    folder = next((one for one in _steps(path)[::-1] if (one / "_METADATA").exists()), path)
    for one in (folder, folder.parent):
        try:
            text = read_small(one / "_CHECKPOINT_METADATA").decode()
        except (OSError, ValueError):
            continue
        data = json_of(text)
        custom = data.get("custom_metadata") if isinstance(data, dict) else None
        lora = custom.get("lora") if isinstance(custom, dict) else None
        said = {**lora, **said} if isinstance(lora, dict) else said
    try:
        import orbax.checkpoint as ocp

        with ocp.PyTreeCheckpointer() as reader:
            check_sizes(reader, folder.resolve())
            return reader.restore(folder.resolve()), said
    except CheckpointError:
        raise
    except Exception as error:  # of kinds that differ from version to version
        why = str(error).rstrip(".")
        raise CheckpointError(
            f"{path} is no Orbax checkpoint that can be read: {why}. Give the folder of a step, "
            "which holds _METADATA, or load the tree yourself: jaxmix.converters.qwix.qwix_adapter."
        ) from error
