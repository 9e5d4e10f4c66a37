"""Trained tokens: those of any type, and heads that are tied to a trained embedding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.peft.file import Config
from jaxmix.errors import ShapeError
from jaxmix.families import Tokens, Update
from jaxmix.placement.ties import EMBEDDINGS, HEADS

__all__ = ["token_rows", "with_copies_marked", "with_tied_heads_saved"]


def token_rows(config: Config, site: str, factors: SiteTensors) -> Tokens:
    """Builds the update of an embedding's trained rows.

    Args:
        config: The adapter's config, whose ``trainable_token_indices`` lists the rows: a list for
            the input embedding, or ``{module: list}``.
        site: The embedding.
        factors: ``{"trainable_tokens_delta": (n, D)}``.

    Returns:
        The update.

    Raises:
        ShapeError: If the numbers of rows and indices differ.
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


def _indices(field: Any, site: str) -> list[int] | None:
    """The indices of a module, which PEFT matches by the end of its name."""
    if isinstance(field, list):
        return field
    if site in field:  # takes precedence over names that end this one
        return field[site]
    return next((rows for name, rows in field.items() if site.endswith(name)), None)


def with_copies_marked(updates: Mapping[str, Update]) -> dict[str, Update]:
    """Marks the heads whose trained tokens are a copy of an embedding's.

    PEFT's TRAINABLE_TOKENS saves the rows of the embedding and of the head that is tied to it.

    Args:
        updates: ``{site: update}``.

    Returns:
        The updates, with these heads marked.
    """
    tokens = {site: update for site, update in updates.items() if isinstance(update, Tokens)}
    out = dict(updates)
    for site, update in tokens.items():
        others = [other for name, other in tokens.items() if name != site]
        if site.endswith(HEADS) and any(_is_same(update, other) for other in others):
            out[site] = replace(update, is_copy=True)
    return out


def with_tied_heads_saved(saved: dict[str, Any], base: dict[str, Any]) -> None:
    """Moves heads that are tied to a saved embedding from ``base`` to ``saved``.

    PEFT's ``ensure_weight_tying`` names one of the two in ``modules_to_save`` and saves both.

    Args:
        saved: ``{site: leaves}`` of fully trained modules; extended.
        base: ``{site: leaves}`` of copies of the base; heads equal to a saved weight are removed.
    """
    weights = [leaves["weight"] for leaves in saved.values() if "weight" in leaves]
    for site in filter(_is_tied_by_name, [*base]):
        if any(np.array_equal(base[site]["weight"], weight) for weight in weights):
            saved[site] = {**base.pop(site), **saved.get(site, {})}


def _is_tied_by_name(site: str) -> bool:
    """Whether a module has the name of an embedding or a head."""
    ends = (*EMBEDDINGS, *HEADS)
    return any(site == end or site.endswith(f".{end}") for end in ends)


def _is_same(a: Tokens, b: Tokens) -> bool:
    return np.array_equal(a.rows, b.rows) and np.array_equal(a.values, b.values)
