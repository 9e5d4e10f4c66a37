"""Reads LoRA leaves of JAX libraries from a checkpoint, a file, or a tree in memory."""

import math
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.common.tensor_files import (
    CONFIG_FILE,
    file_keys,
    file_metadata,
    parse_json_or_none,
)
from jaxmix.converters.adapters.common.tensors import read_tensors
from jaxmix.converters.adapters.common.values import NUMBER
from jaxmix.converters.adapters.qwix.factors import updates_of
from jaxmix.converters.adapters.qwix.folders import Restored, is_orbax, restore
from jaxmix.converters.adapters.qwix.pairs import Pair, is_factor, is_named_factor, pairs_of
from jaxmix.converters.adapters.qwix.tunix import tunix_updates
from jaxmix.errors import CheckpointError, ShapeError, listing, option
from jaxmix.families import Update

__all__ = ["is_qwix", "qwix_adapter", "read_qwix"]


def is_qwix(path: Path) -> bool:
    """Returns whether a safetensors file has qwix's leaves, or a folder is an Orbax checkpoint."""
    if path.is_file():
        keys = file_keys(path)
        # mlx-lm also has factors called lora_a, and a config next to them.
        has_bare = any(map(is_factor, keys)) and not (path.parent / CONFIG_FILE).exists()
        return has_bare or any(map(is_named_factor, keys))
    return is_orbax(path)


def read_qwix(
    path: Path,
    name: str,
    strength: Any = 1.0,
    *,
    alpha: float | None = None,
    axis: int | None = None,
    use_rslora: bool = False,
) -> Adapter:
    """Reads LoRA leaves of qwix, openpi or ``flax.nnx.LoRA`` from Orbax or a safetensors file.

    Args:
        path: The folder of a run's step (of MaxText, tunix or openpi), any Orbax checkpoint of the
            LoRA leaves, or a safetensors file whose keys are their paths.
        name: The adapter's name.
        strength: The adapter's strength in a mix, a real scalar.
        alpha: The alpha of qwix's rule or openpi's config. MaxText stores it next to the
            checkpoint, where it is read.
        axis: The axis along which layers are stacked, if the shapes do not determine it.
        use_rslora: Whether openpi's config has ``rslora``; the scale is then alpha/√rank.

    Returns:
        The adapter: `qwix_adapter` of the leaves.

    Raises:
        CheckpointError: If it can't be read, lacks an alpha, or has leaves that are not factors.
        ShapeError: If two factors do not fit each other.
        AdapterError: If a number is not finite.

    Example:
        >>> read_qwix(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder is not a readable Orbax checkpoint: ...

    Source: google/qwix, ``qwix/_src/providers/lora.py``; AI-Hypercomputer/maxtext,
    ``maxtext/utils/lora_utils.py``; google/tunix, ``tunix/sft/checkpoint_manager.py``;
    Physical-Intelligence/openpi, ``src/openpi/models/lora.py``.
    """
    if path.is_file():
        tree: Any = read_tensors(path)
        if others := [key for key in tree if not is_factor(key)]:
            raise CheckpointError(
                f"{path}: tensors that are not factors of qwix:{listing(others)}\nExpected "
                "<leaf>_lora_a and <leaf>_lora_b, or lora_a and lora_b of a module. Remove the "
                "others, or pass the tree to jaxmix.converters.qwix.qwix_adapter, which ignores "
                "them."
            )
        restored = Restored(tree, dict(file_metadata(path)))
    else:
        restored = restore(path)
    record = restored.record
    stated = next((record[key] for key in ("lora_alpha", "alpha") if key in record), None)
    if isinstance(stated, str):
        stated = parse_json_or_none(stated)
    if stated is not None and alpha is None and not NUMBER.holds(stated):
        raise CheckpointError(
            f"{path}: the metadata has alpha = {stated!r}, expected a number. Pass it: "
            f"{option('alpha', ..., of='load(path')}."
        )
    if alpha is not None and isinstance(stated, int | float) and stated != alpha:
        raise CheckpointError(
            f"{path}: alpha = {alpha} was given, but the metadata has {stated}; MaxText refuses "
            f"this "
            "too. Leave alpha out, or pass the same value."
        )
    adapter = _adapter(
        pairs_of(restored.tree, str(path), restored.others),
        name,
        stated if alpha is None else alpha,
        axis,
        use_rslora=use_rslora,
        where=str(path),
        is_tunix=restored.is_tunix,
    )
    return adapter * strength


def qwix_adapter(
    tree: Any,
    name: str = "qwix",
    *,
    alpha: float | None = None,
    axis: int | None = None,
    use_rslora: bool = False,
    where: str = "the tree",
) -> Adapter:
    """Returns the adapter in a tree with LoRA leaves; other leaves are ignored.

    Args:
        tree: A params tree, an ``nnx.State`` as pure dict, or a flat dict of paths.
        name: The adapter's name.
        alpha: The alpha of qwix's rule or openpi's config; the scale is alpha / rank.
            ``flax.nnx.LoRA`` and openpi's MLP have no alpha, and the scale 1.
        axis: The axis along which layers are stacked, if the shapes do not determine it.
        use_rslora: Whether openpi's config has ``rslora``; the scale is then alpha / √rank.
        where: The tree, for messages.

    Returns:
        The adapter. A site is named by its leaf's path without a final ``kernel``. Each of several
        stacked layers has a site, with its number after the part of the path that ends in
        ``layers``. The sites of tunix's models have Hugging Face's names, which also match tunix's
        own tree.

    Raises:
        CheckpointError: If a factor lacks its partner, there are none, or an alpha is missing.
        ShapeError: If two factors do not fit each other.
        AdapterError: If a number is not finite.

    Example:
        >>> import numpy as np
        >>> tree = {"proj": {"kernel_lora_a": np.ones((3, 1)), "kernel_lora_b": np.ones((1, 2))}}
        >>> qwix_adapter(tree, alpha=2.0).updates["proj"].scale
        2.0
    """
    return _adapter(
        pairs_of(tree, where), name, alpha, axis, use_rslora=use_rslora, where=where, is_tunix=False
    )


def _adapter(
    pairs: list[Pair],
    name: str,
    alpha: Any,
    axis: int | None,
    *,
    use_rslora: bool,
    where: str,
    is_tunix: bool,
) -> Adapter:
    """The adapter of the pairs of a tree."""
    _check_alpha(pairs, alpha, where, use_rslora)
    if alpha is not None and (tunix := tunix_updates(pairs, float(alpha), is_tunix=is_tunix)):
        return Adapter(tunix, name=name)
    updates: dict[str, Update] = {}
    wrong: list[str] = []
    for pair in pairs:
        try:
            for site, update in updates_of(pair, _scale(pair, alpha, use_rslora), axis):
                if site in updates:
                    wrong.append(f"{pair.leaf}: a duplicate of the site {site}")
                updates[site] = update
        except ShapeError as error:
            wrong.append(f"{pair.leaf}: {error}")
    if wrong:
        raise ShapeError(
            f"{where}: factors that do not fit each other:{listing(wrong)}\nExpected lora_a "
            "(in …, r) and lora_b (r, out …); or for stacked layers (layers, in …, r) and (layers, "
            "r, out …), or (in, layers …, r) and (r, layers, out …). If both are possible, pass "
            f"the axis of the layers, 0 or 1: {option('axis', ..., of='load(path')}."
        )
    return Adapter(updates, name=name)


def _scale(pair: Pair, alpha: Any, use_rslora: bool) -> float:
    """The scale of a pair."""
    if pair.origin in ("flax", "openpi"):
        return 1.0
    rank = pair.a.shape[-1] if pair.a.ndim else 1
    return float(alpha) / (math.sqrt(rank) if use_rslora else max(rank, 1))


def _check_alpha(pairs: list[Pair], alpha: Any, where: str, use_rslora: bool) -> None:
    """Refuses an alpha that is missing, or that nothing needs."""
    scaled = [pair for pair in pairs if pair.origin not in ("flax", "openpi")]
    if scaled and not NUMBER.holds(alpha):
        plain = (
            " flax.nnx.LoRA has none: pass the rank as alpha."
            if any(pair.origin == "plain" for pair in scaled)
            else ""
        )
        raise CheckpointError(
            f"{where}: qwix has alpha in its rule and openpi in its config, not with the factors,"
            f" and the metadata does not state it (found {alpha!r}). Pass it: "
            f"{option('alpha', ..., of='load(path')}."
            f"{plain}"
        )
    if use_rslora and any(pair.origin == "qwix" for pair in pairs):
        raise CheckpointError(
            f"{where}: use_rslora is for openpi's einsums, and qwix has no such scale. "
            "Leave it out."
        )
    if scaled or alpha is None:
        return
    if others := [p for p in pairs if p.origin == "flax" and p.a.shape[-1] != alpha]:
        lines = [f"{pair.leaf}: rank {pair.a.shape[-1]}" for pair in others]
        raise CheckpointError(
            f"{where}: alpha = {alpha} was given, but flax.nnx.LoRA has no alpha, and its scale is "
            f"1:{listing(lines)}\nLeave alpha out."
        )
