"""Trained tokens that an adapter of another type brings along: ``trainable_token_indices``."""

from typing import Any

import numpy as np

from jaxmix.converters.peft.file import Config
from jaxmix.converters.peft.shapes import Factors
from jaxmix.errors import ShapeError
from jaxmix.families import Tokens

__all__ = ["token_rows"]


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
    return Tokens(values, np.asarray(indices, np.int32))


def _indices(told: Any, site: str) -> list[int] | None:
    """The indices for a module, which PEFT finds by the end of its name."""
    if isinstance(told, list):
        return told
    return next((rows for name, rows in told.items() if site.endswith(name)), None)
