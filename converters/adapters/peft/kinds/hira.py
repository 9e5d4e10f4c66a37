"""PEFT's HiRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, check_ranks, required
from jaxmix.converters.adapters.common.values import FLAG
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out
from jaxmix.errors import ShapeError
from jaxmix.families import HiRA, Update

__all__ = ["PEFT_TYPE"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """HiRA of a linear layer, a convolution or an embedding; the factors have LoRA's shapes.

    The rank is that of the tensors: PEFT 0.21 ignores rank_pattern.
    """
    if "hira_embedding_A" in factors or "hira_embedding_B" in factors:
        a, b = required(factors, "hira_embedding_A", "hira_embedding_B")
        rank = len(a) if a.ndim else 0
        check_ranks(factors, {"hira_embedding_A": (2, 0), "hira_embedding_B": (2, 1)}, rank)
        # The weight is (V, D), and PEFT stores A (r, V), B (D, r).
        return HiRA(b.T, a.T, embedding=True)
    a, b = required(factors, "hira_A", "hira_B")
    axes, rank = max(a.ndim, 2), len(a) if a.ndim else 0
    check_ranks(factors, {"hira_A": (axes, 0), "hira_B": (axes, 1)}, rank)
    if b.shape[2:] != (1,) * (axes - 2):
        raise ShapeError(f"hira_B has shape {b.shape}, expected (out, {rank}, 1, …)")
    kernel = a.shape[2:]
    transposed = False if kernel else file.transposed
    return HiRA(a.reshape(rank, -1), b.reshape(-1, rank), kernel, transposed=transposed)


def _write(updates: Mapping[str, Any]) -> PeftContent:
    fields = {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "r": equal_value(updates, "r", lambda update: update.a.shape[0]),
    }
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        tensors |= {f"{site}.{name}": factor for name, factor in _factors(update).items()}
    return PeftContent(fields, tensors)


def _factors(update: HiRA) -> dict[str, Any]:
    """The factors in PEFT's names and shapes."""
    if update.embedding:
        return {"hira_embedding_A": update.b.T, "hira_embedding_B": update.a.T}
    rank, kernel = update.a.shape[0], update.kernel
    return {
        "hira_A": update.a.reshape(rank, -1, *kernel),
        "hira_B": update.b.reshape(-1, rank, *(1,) * len(kernel)),
    }


PEFT_TYPE = PeftType(
    ConfigFields(
        {"fan_in_fan_out": FLAG, **SAVED},
        ABOUT | WHERE | {"hira_dropout", "init_weights", "r", "rank_pattern"},
    ),
    ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"),
    _build,
    _write,
)
