"""PEFT's MiSS, which was called Bone before peft 0.19."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.values import ANY, COUNT, one_of, short_json
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value
from jaxmix.errors import ShapeError
from jaxmix.families import MiSS, Update

__all__ = ["BONE", "MISS"]


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """MiSS; ``init_weights`` determines not only the initial values, but also the formula."""
    name = file.config.family.lower()
    (block,) = required(factors, f"{name}_block")
    values = file.config.values
    rank, form = values["r"], values.get("init_weights")
    if form == "bat":
        fits, expected = block.ndim == 3 and block.shape[1:] == (rank, rank), f"(·, {rank}, {rank})"
    elif form == "mini":
        small = values.get("mini_r", 1)
        fits, expected = block.shape == (rank, small), f"({rank}, {small})"
    else:
        fits, expected = block.ndim == 2 and block.shape[0] == rank, f"({rank}, out)"
    if not fits or not block.size:
        raise ShapeError(
            f"{name}_block has shape {block.shape}, expected {expected} by the config's r and "
            f"init_weights = {short_json(form)}"
        )
    return MiSS(block, bat=form == "bat")


def _find_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Refuses unknown forms."""
    form = values.get("init_weights")
    if isinstance(form, str) and form not in ("bat", "mini"):
        yield (
            f"init_weights = {form!r}: unknown, expected true, false, 'bat' or 'mini', since it "
            "determines the formula. Merge it with PEFT (merge_and_unload)"
        )


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Writes blocks of equal width as 'mini', which is valid whether or not they are narrower."""
    bat = equal_value(updates, "init_weights", lambda update: update.bat)
    fields = {"r": equal_value(updates, "r", lambda update: update.block.shape[-1 if bat else 0])}
    if bat:
        fields["init_weights"] = "bat"
    elif len({update.block.shape[1] for update in updates.values()}) == 1:
        small = next(iter(updates.values())).block.shape[1]
        fields |= {"init_weights": "mini", "mini_r": small}
    else:
        fields["init_weights"] = True
    return PeftContent(
        fields, {f"{site}.miss_block": update.block for site, update in updates.items()}
    )


def _kind(name: str, only: str, **more: Any) -> PeftType:
    return PeftType(
        ConfigFields(
            {
                "bias": one_of("none", "all", only),
                "init_weights": ANY,
                "mini_r": COUNT._replace(is_required=False),
                "r": COUNT,
                **SAVED,
            },
            ABOUT | WHERE | {f"{name}_dropout"},
        ),
        (f"{name}_block",),
        _build,
        find_problems=_find_problems,
        **more,
    )


MISS = _kind("miss", "MiSS_only", write=_write)
BONE = _kind("bone", "bone_only")
