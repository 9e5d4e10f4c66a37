"""PEFT's MiSS, and Bone, as it was called before peft 0.19."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.same import same
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import ANY, COUNT, one_of, short
from jaxmix.errors import ShapeError
from jaxmix.families import MiSS, Update

__all__ = ["BONE", "MISS"]


def _build(file: File, site: str, factors: Factors) -> Update:
    """MiSS: ``init_weights`` says not only how it began, but what is computed."""
    name = file.config.family.lower()
    (block,) = need(factors, f"{name}_block")
    values = file.config.values
    rank, form = values["r"], values.get("init_weights")
    if form == "bat":
        fits, wanted = block.ndim == 3 and block.shape[1:] == (rank, rank), f"(·, {rank}, {rank})"
    elif form == "mini":
        small = values.get("mini_r", 1)
        fits, wanted = block.shape == (rank, small), f"({rank}, {small})"
    else:
        fits, wanted = block.ndim == 2 and block.shape[0] == rank, f"({rank}, out)"
    if not fits or not block.size:
        raise ShapeError(
            f"{name}_block has shape {block.shape}, expected {wanted} by the config's r and "
            f"init_weights = {short(form)}"
        )
    return MiSS(block, bat=form == "bat")


def _judged(values: Mapping[str, Any]) -> Iterator[str]:
    """A form that nobody knows."""
    form = values.get("init_weights")
    if isinstance(form, str) and form not in ("bat", "mini"):
        yield (
            f"init_weights = {form!r}: unknown, expected true, false, 'bat' or 'mini': it says "
            "what is computed. Merge it with PEFT (merge_and_unload)"
        )


def _write(updates: Mapping[str, Any]) -> Written:
    """A block of less columns than outputs is a mini; nothing but the base tells, so all are."""
    bat = same(updates, "init_weights", lambda update: update.bat)
    fields = {"r": same(updates, "r", lambda update: update.block.shape[-1 if bat else 0])}
    if bat:
        fields["init_weights"] = "bat"
    elif len({update.block.shape[1] for update in updates.values()}) == 1:
        small = next(iter(updates.values())).block.shape[1]
        fields |= {"init_weights": "mini", "mini_r": small}
    else:
        fields["init_weights"] = True
    return Written(fields, {f"{site}.miss_block": update.block for site, update in updates.items()})


def _kind(name: str, only: str, **more: Any) -> Kind:
    return Kind(
        Fields(
            {
                "bias": one_of("none", "all", only),
                "init_weights": ANY,
                "mini_r": COUNT._replace(is_needed=False),
                "r": COUNT,
                **SAVED,
            },
            ABOUT | WHERE | {f"{name}_dropout"},
        ),
        (f"{name}_block",),
        _build,
        judged=_judged,
        **more,
    )


MISS = _kind("miss", "MiSS_only", write=_write)
BONE = _kind("bone", "bone_only")
