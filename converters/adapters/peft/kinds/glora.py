"""PEFT's GLoRA."""

from collections.abc import Mapping
from typing import Any

from jaxmix.converters.adapters.common.shapes import SiteTensors, describe_shapes, required
from jaxmix.converters.adapters.common.values import COUNT, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, refuse_unless
from jaxmix.errors import CheckpointError, ShapeError, UnsupportedError, to_lora_call
from jaxmix.families import GLoRA, Update

__all__ = ["PEFT_TYPE"]

_PATHS = ("A", "B", "C", "D", "E")
_FIELDS = {"config_A_B": "AB", "config_C": "C", "config_D_E": "DE"}


def _build(file: File, site: str, factors: SiteTensors) -> Update:
    """GLoRA; the form of each path follows from its tensors.

    PEFT saves zeros for a path that is off, and turns the paths of the bias off if the base has no
    bias.
    """
    a, b, c, d, e = (
        _path(file, factors, name, file.config.values.get(field) == "none")
        for field, names in _FIELDS.items()
        for name in names
    )
    return GLoRA(a, b, c, d, e)


def _path(file: File, factors: SiteTensors, name: str, is_off: bool) -> tuple[Any, ...]:
    """The tensors of one path."""
    stem = f"glora_{name}"
    path = {key: array for key, array in factors.items() if key.startswith(stem + ".")}
    names = {key.removeprefix(stem + ".") for key in path}
    if is_off and not names:
        return ()
    if names == {"zeros"} and not path[f"{stem}.zeros"].any():
        return ()
    if names == {"X"}:
        return required(path, f"{stem}.X")
    if names == {"Xd", "Xu"}:
        down, up = required(path, f"{stem}.Xd", f"{stem}.Xu")
        rank = file.config.values["r"]
        if down.ndim != 2 or up.ndim != 2 or {down.shape[1], up.shape[0]} != {rank}:
            raise ShapeError(
                f"{describe_shapes(path)}, expected (·, {rank}) and ({rank}, ·) by the config"
            )
        return down, up
    raise CheckpointError(
        f"{describe_shapes(path) or f'no {stem}'}: expected {stem}.Xd and {stem}.Xu, {stem}.X, or "
        f"zeros in {stem}.zeros"
    )


def _write(updates: Mapping[str, Any]) -> PeftContent:
    """Leaves out paths that are off, for which PEFT needs no zeros."""
    refuse_unless(
        updates,
        lambda update: not update.on_input,
        "PEFT's GLoRA multiplies A elementwise, and these multiply it from the right",
    )
    forms = {
        field: equal_value(updates, field, lambda x, paths=paths: _form(x, paths))
        for field, paths in _FIELDS.items()
    }
    ranks = {
        site: {len(path[1]) for path in _paths(update).values() if len(path) == 2}
        for site, update in updates.items()
    }
    fields = {**forms, "r": equal_value(ranks, "r", lambda found: next(iter(found), 8))}
    tensors: dict[str, Any] = {}
    for site, update in updates.items():
        for name, path in _paths(update).items():
            ends = ("X",) if len(path) == 1 else ("Xd", "Xu")
            tensors |= {f"{site}.glora_{name}.{end}": x for end, x in zip(ends, path, strict=False)}
    return PeftContent(fields, tensors)


def _paths(update: GLoRA) -> dict[str, tuple[Any, ...]]:
    return dict(zip(_PATHS, (update.a, update.b, update.c, update.d, update.e), strict=True))


def _form(update: GLoRA, names: str) -> str:
    """The config's name for the form of paths with a common field."""
    forms = sorted({_named(_paths(update)[name], name) for name in names})
    if len(forms) == 1:
        return forms[0]
    raise UnsupportedError(
        f"PEFT's GLoRA has one form for the paths {' and '.join(names)}, and this one has "
        f"{' and '.join(forms)}. Convert it to a LoRA: {to_lora_call()}."
    )


def _named(path: tuple[Any, ...], name: str) -> str:
    if not path:
        return "none"
    if len(path) == 2:
        return "lora"
    return "constant" if path[0].shape == (1,) and name != "C" else "vector"


PEFT_TYPE = PeftType(
    ConfigFields(
        {
            "bias": one_of("none", "all", "glora_only"),
            "config_A_B": one_of("lora", "vector", "constant", "none"),
            "config_C": one_of("lora", "vector", "none"),
            "config_D_E": one_of("vector", "constant", "none"),
            "r": COUNT,
            **SAVED,
        },
        ABOUT | {"init_weights", "target_modules"},
    ),
    tuple(f"glora_{name}.{end}" for name in _PATHS for end in ("Xd", "Xu", "X", "zeros")),
    _build,
    _write,
)
