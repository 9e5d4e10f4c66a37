"""PEFT's trainable tokens."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.values import Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import ABOUT, ConfigFields, PeftContent, PeftType
from jaxmix.converters.adapters.peft.same import equal_value
from jaxmix.errors import ShapeError
from jaxmix.families import Tokens, Update

__all__ = ["PEFT_TYPE"]


def _are_tokens(value: Any) -> bool:
    """Whether they are indices of rows, without duplicates, whose order in PEFT is undefined."""
    if not isinstance(value, list) or len(set(map(repr, value))) < len(value):
        return False
    return all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**31 for x in value)


_TOKENS = Check("a list of non-negative integers without duplicates", _are_tokens)


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """The rows replace the base's, although PEFT calls them a delta."""
    (rows,) = required(factors, "trainable_tokens_delta")
    indices = np.asarray(file.config.values["token_indices"], np.int32)
    if rows.ndim != 2 or len(rows) != len(indices):
        raise ShapeError(
            f"trainable_tokens_delta has shape {rows.shape}, expected ({len(indices)}, D) by the "
            "config's token_indices"
        )
    places: Any = indices
    return Tokens(rows, places)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    indices = equal_value(
        updates, "token_indices", lambda update: tuple(np.asarray(update.rows).tolist())
    )
    tensors = {f"{site}.trainable_tokens_delta": update.values for site, update in updates.items()}
    targets = [site for site, update in updates.items() if not update.is_copy]
    return PeftContent({"token_indices": list(indices), "target_modules": targets}, tensors)


PEFT_TYPE = PeftType(
    ConfigFields({"token_indices": _TOKENS}, ABOUT | {"init_weights", "target_modules"}),
    ("trainable_tokens_delta",),
    _build,
    _write,
)
