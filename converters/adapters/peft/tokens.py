"""Trained tokens: those that another type brings along, and those that PEFT saves twice."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.errors import ShapeError
from jaxmix.families import Tokens, Update
from jaxmix.placement.ties import EMBEDDINGS, HEADS

__all__ = ["token_rows", "with_copies_marked", "with_tied_heads_saved"]


def token_rows(config: Config, site: str, factors: Factors) -> Tokens:
    """The rows of an embedding that were trained.

    Args:
        config: the adapter's config, whose ``trainable_token_indices`` says which rows: a list for
            the input embedding, or ``{module: list}``.
        site: the embedding.
        factors: ``{"trainable_tokens_delta": (n, D)}``.

    Returns:
        The update.

    Raises:
        ShapeError: if there are not as many rows as indices.
    """
    values = factors["trainable_tokens_delta"]
    indices = _indices(config.values["trainable_token_indices"], site)
    if indices is None or values.ndim != 2 or len(indices) != values.shape[0]:
        raise ShapeError(
            f"{config.path.parent}: {site} has trainable_tokens_delta {values.shape}, expected "
            f"({'?' if indices is None else len(indices)}, D) by trainable_token_indices"
        )
    places: Any = np.asarray(indices, np.int32)
    return Tokens(values, places)


def _indices(told: Any, site: str) -> list[int] | None:
    """The indices for a module, which PEFT finds by the end of its name."""
    if isinstance(told, list):
        return told
    if site in told:  # the end of another's name may come first
        return told[site]
    return next((rows for name, rows in told.items() if site.endswith(name)), None)


def with_copies_marked(updates: Mapping[str, Update]) -> dict[str, Update]:
    """The updates, heads marked that have the tokens of an embedding.

    PEFT's type of its own saves them for the embedding and for the head that is tied to it.

    Args:
        updates: ``{site: update}``.

    Returns:
        The same.
    """
    tokens = {site: update for site, update in updates.items() if isinstance(update, Tokens)}
    out = dict(updates)
    for site, update in tokens.items():
        others = [other for name, other in tokens.items() if name != site]
        if site.endswith(HEADS) and any(_is_same(update, other) for other in others):
            out[site] = replace(update, is_copy=True)
    return out


def with_tied_heads_saved(saved: dict[str, Any], base: dict[str, Any]) -> None:
    """Moves heads that were trained as one with a saved embedding from ``base`` to ``saved``.

    PEFT's ``ensure_weight_tying`` names one of the two in ``modules_to_save`` and saves both.

    Args:
        saved: ``{site: leaves}`` of modules that were trained whole; extended.
        base: ``{site: leaves}`` of copies of the base; those that equal a saved weight leave it.
    """
    weights = [leaves["weight"] for leaves in saved.values() if "weight" in leaves]
    for site in filter(_is_tied_by_name, [*base]):
        if any(np.array_equal(base[site]["weight"], weight) for weight in weights):
            saved[site] = {**base.pop(site), **saved.get(site, {})}


def _is_tied_by_name(site: str) -> bool:
    """Whether a module is called as one side of a tie is."""
    ends = (*EMBEDDINGS, *HEADS)
    return any(site == end or site.endswith(f".{end}") for end in ends)


def _is_same(a: Tokens, b: Tokens) -> bool:
    return np.array_equal(a.rows, b.rows) and np.array_equal(a.values, b.values)
