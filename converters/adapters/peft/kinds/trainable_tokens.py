"""PEFT's trainable tokens."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import Check
from jaxmix.errors import ShapeError
from jaxmix.families import Tokens, Update

__all__ = ["KIND"]


def _are_tokens(value: Any) -> bool:
    """Whether they are numbers of rows. One that is there twice PEFT would write in any order."""
    if not isinstance(value, list) or len(set(map(repr, value))) < len(value):
        return False
    return all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**31 for x in value)


_TOKENS = Check("a list of whole numbers from 0 on, each once", _are_tokens)


def _build(file: File, site: str, factors: Factors) -> Update:
    """The rows that are put in the place of the base's: they are called a delta, and are none."""
    (rows,) = need(factors, "trainable_tokens_delta")
    indices = np.asarray(file.config.values["token_indices"], np.int32)
    if rows.ndim != 2 or len(rows) != len(indices):
        raise ShapeError(
            f"trainable_tokens_delta has shape {rows.shape}, expected ({len(indices)}, D) by the "
            "config's token_indices"
        )
    places: Any = indices
    return Tokens(rows, places)


def _write(updates: Mapping[str, Any]) -> Written:
    indices = same(updates, "token_indices", lambda update: tuple(np.asarray(update.rows).tolist()))
    tensors = {f"{site}.trainable_tokens_delta": update.values for site, update in updates.items()}
    own = [site for site, update in updates.items() if not update.is_copy]
    return Written({"token_indices": list(indices), "target_modules": own}, tensors)


KIND = Kind(
    Fields({"token_indices": _TOKENS}, ABOUT | {"init_weights", "target_modules"}),
    ("trainable_tokens_delta",),
    _build,
    _write,
)
