"""Reads LoRA leaves of JAX's libraries, out of a checkpoint, a file, or a tree in memory."""

import math
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.lycoris.files import file_keys, file_metadata, json_of
from jaxmix.converters.adapters.mlx import CONFIG_FILE as MLX_CONFIG
from jaxmix.converters.adapters.peft.tensors import read_tensors
from jaxmix.converters.adapters.peft.values import NUMBER
from jaxmix.converters.adapters.qwix.factors import updates_of
from jaxmix.converters.adapters.qwix.folders import Restored, is_orbax, restored
from jaxmix.converters.adapters.qwix.pairs import Pair, is_factor, is_named_factor, pairs_of
from jaxmix.converters.adapters.qwix.tunix import tunix_updates
from jaxmix.errors import CheckpointError, ShapeError, listing, option
from jaxmix.families import Update

__all__ = ["is_qwix", "qwix_adapter", "read_qwix"]


def is_qwix(path: Path) -> bool:
    """Whether a safetensors has qwix's leaves, or a folder is an Orbax checkpoint."""
    if path.is_file():
        keys = file_keys(path)
        # mlx-lm calls factors lora_a too, and has a config beside them.
        has_bare = any(map(is_factor, keys)) and not (path.parent / MLX_CONFIG).exists()
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
        path: the folder of a run's step (MaxText's, tunix's, openpi's), any Orbax checkpoint of the
            LoRA leaves, or a safetensors whose keys are their paths.
        name: what to call the adapter.
        strength: the strength with which it enters a mix, a real scalar.
        alpha: the alpha of qwix's rule or openpi's config; MaxText keeps it beside the checkpoint,
            where it is read.
        axis: the axis along which layers are stacked, where shapes leave it open.
        use_rslora: whether openpi's config has ``rslora``: the scale is alpha/√rank then.

    Returns:
        The adapter: `qwix_adapter` of the leaves.

    Raises:
        CheckpointError: if it can't be read, lacks an alpha, or has leaves that are no factors.
        ShapeError: if two factors do not fit each other.
        AdapterError: if a number is not finite.

    Example:
        >>> read_qwix(Path("no/such/folder"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/folder is no Orbax checkpoint that can be read: ...

    Source: google/qwix, ``qwix/_src/providers/lora.py``; AI-Hypercomputer/maxtext,
    ``maxtext/utils/lora_utils.py``; google/tunix, ``tunix/sft/checkpoint_manager.py``;
    Physical-Intelligence/openpi, ``src/openpi/models/lora.py``.
    """
    if path.is_file():
        tree: Any = read_tensors(path)
        if other := [key for key in tree if not is_factor(key)]:
            raise CheckpointError(
                f"{path}: tensors that are no factors of qwix's:{listing(other)}\nExpected "
                "<leaf>_lora_a and <leaf>_lora_b, or lora_a and lora_b of a module. Leave the "
                "others out, or give the tree to jaxmix.converters.qwix.qwix_adapter, which leaves "
                "them aside."
            )
        found = Restored(tree, dict(file_metadata(path)))
    else:
        found = restored(path)
    record = found.record
    beside = next((record[key] for key in ("lora_alpha", "alpha") if key in record), None)
    if isinstance(beside, str):
        beside = json_of(beside)
    if beside is not None and alpha is None and not NUMBER.holds(beside):
        raise CheckpointError(
            f"{path}: beside the factors stands alpha = {beside!r}, expected a number. Give it: "
            f"{option('alpha', ..., of='load(path')}."
        )
    if alpha is not None and isinstance(beside, int | float) and beside != alpha:
        raise CheckpointError(
            f"{path}: alpha = {alpha} was given, and beside the factors stands {beside}, which "
            "MaxText refuses too. Leave it out, or give that."
        )
    adapter = _adapter(
        pairs_of(found.tree, str(path), found.others),
        name,
        beside if alpha is None else alpha,
        axis,
        use_rslora=use_rslora,
        where=str(path),
        is_tunix=found.is_tunix,
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
    """The adapter in a tree with LoRA leaves; leaves that are none are left aside.

    Args:
        tree: a params tree, an ``nnx.State`` as pure dict, or a flat dict of paths.
        name: what to call the adapter.
        alpha: the alpha of qwix's rule or openpi's config; the scale is alpha / rank.
            ``flax.nnx.LoRA`` has none, and the scale 1; so has openpi's MLP.
        axis: the axis along which layers are stacked, where shapes leave it open.
        use_rslora: whether openpi's config has ``rslora``: the scale is alpha / √rank then.
        where: what the tree is, for messages.

    Returns:
        The adapter. A site is named by its leaf's path (``kernel`` at its end left out); of
        stacked layers each has a site, its number after the word that ends in ``layers``. The
        sites of tunix's models have Hugging Face's names, by which its own tree is found too.

    Raises:
        CheckpointError: if a factor is alone, none is there, or an alpha is missing.
        ShapeError: if two factors do not fit each other.
        AdapterError: if a number is not finite.

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
                    wrong.append(f"{pair.leaf}: a second one for the site {site}")
                updates[site] = update
        except ShapeError as error:
            wrong.append(f"{pair.leaf}: {error}")
    if wrong:
        raise ShapeError(
            f"{where}: factors that do not fit each other:{listing(wrong)}\nExpected lora_a "
            "(in …, r) and lora_b (r, out …), or of stacked layers (layers, in …, r) and (layers, "
            "r, out …), or (in, layers …, r) and (r, layers, out …). With axis=0 or axis=1 say "
            "which, where both are possible."
        )
    return Adapter(updates, name=name)


def _scale(pair: Pair, alpha: Any, use_rslora: bool) -> float:
    """The scale of a pair."""
    if pair.way in ("flax", "openpi"):
        return 1.0
    rank = pair.a.shape[-1] if pair.a.ndim else 1
    return float(alpha) / (math.sqrt(rank) if use_rslora else max(rank, 1))


def _check_alpha(pairs: list[Pair], alpha: Any, where: str, use_rslora: bool) -> None:
    """Raises an error for an alpha that is missing, or that nothing asks for."""
    scaled = [pair for pair in pairs if pair.way not in ("flax", "openpi")]
    if scaled and not NUMBER.holds(alpha):
        plain = (
            " flax.nnx.LoRA has none: alpha is the rank then."
            if any(pair.way == "plain" for pair in scaled)
            else ""
        )
        raise CheckpointError(
            f"{where}: qwix keeps alpha in its rule and openpi in its config, not with the factors,"
            f" and nothing beside them says it (found {alpha!r}). Give it: "
            f"{option('alpha', ..., of='load(path')}."
            f"{plain}"
        )
    if use_rslora and any(pair.way == "qwix" for pair in pairs):
        raise CheckpointError(
            f"{where}: use_rslora is for openpi's einsums, and qwix has no such scale. "
            "Leave it out."
        )
    if scaled or alpha is None:
        return
    if others := [p for p in pairs if p.way == "flax" and p.a.shape[-1] != alpha]:
        lines = [f"{pair.leaf}: rank {pair.a.shape[-1]}" for pair in others]
        raise CheckpointError(
            f"{where}: alpha = {alpha} was given, but flax.nnx.LoRA has no alpha, and its scale is "
            f"1:{listing(lines)}\nLeave alpha out."
        )
