"""Restores the dots in the names of kohya's files, which have underscores, from the tables alone.

A model's table has the names of its modules, so the base is not needed to distinguish dots from
underscores.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache

from jaxmix.converters.names.images import image_maps

__all__ = ["dotted_names"]

_CLIP = (
    *(f"text_model.encoder.layers.{{}}.self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    *(f"text_model.encoder.layers.{{}}.mlp.fc{n}" for n in (1, 2)),
    "text_projection",
)
_T5 = (
    *(f"encoder.block.{{}}.layer.{{}}.SelfAttention.{x}" for x in "qkvo"),
    *(f"encoder.block.{{}}.layer.{{}}.DenseReluDense.{x}" for x in ("wi_0", "wi_1", "wo")),
)
_TEXT = {"te1": _CLIP, "te2": _CLIP, "te3": _T5}
_COMPONENTS = {"te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_3"}


def dotted_names(wanted: Mapping[str, tuple[str, str]]) -> dict[str, str] | None:
    """Returns names with dots, if one model's tables determine all of them.

    Args:
        wanted: ``{name in the file: (role of its model, name with underscores)}``.

    Returns:
        ``{name in the file: name}``, with the component in front if there are several; None if a
        name is in no table, or models differ.

    Example:
        >>> dotted_names({"lora_unet_blocks_3_ffn_0": ("unet", "blocks_3_ffn_0")})
        {'lora_unet_blocks_3_ffn_0': 'blocks.3.ffn.0'}
    """
    roles = dict.fromkeys(role for role, _ in wanted.values())
    found: dict[str, str] = {}
    image_model: str | None = None
    for role in roles:
        flat_names = {
            name: underscored.strip("_")
            for name, (other, underscored) in wanted.items()
            if other == role
        }
        if role in _TEXT:
            component, dotted = _COMPONENTS[role], _all_in(_TEXT[role], flat_names.values())
        elif role == "unet" and (answer := _of_image_model(set(flat_names.values()))) is not None:
            image_model, component, dotted = answer
        else:
            return None
        if dotted is None:
            return None
        start = f"{component}." if len(roles) > 1 else ""
        found |= {name: start + dotted[flat] for name, flat in flat_names.items()}
    if image_model == "flux":  # its second text encoder is T5
        old, new = (f"{_COMPONENTS[role]}." for role in ("te3", "te2"))
        found = {k: new + n.removeprefix(old) if n.startswith(old) else n for k, n in found.items()}
    return found if len(set(found.values())) == len(found) else None


def _of_image_model(names: Collection[str]) -> tuple[str, str, dict[str, str]] | None:
    """The name and component of the image model whose table has all names, and the dotted names."""
    answers: list[tuple[str, str, dict[str, str]]] = []
    for table in image_maps():
        assert table.templates is not None
        known = (name for row in table.templates.rows for name in (row.source, *row.targets))
        if (dotted := _all_in(tuple(dict.fromkeys(known)), names)) is not None:
            answers.append((table.name, table.prefix, dotted))
    is_settled = answers and all(answer[1:] == answers[0][1:] for answer in answers)
    return answers[0] if is_settled else None


def _all_in(templates: tuple[str, ...], names: Iterable[str]) -> dict[str, str] | None:
    """The dotted names, from templates with ``{}`` for numbers; None unless each matches one."""
    by_shape = _by_shape(templates)
    dotted: dict[str, str] = {}
    for name in names:
        matches = set(_matches(by_shape.get(re.sub(r"\d+", "#", name), ()), name))
        if len(matches) != 1:
            return None
        dotted[name] = matches.pop()
    return dotted


def _matches(candidates: Iterable[tuple[re.Pattern[str], str]], name: str) -> Iterator[str]:
    for pattern, template in candidates:
        if match := pattern.fullmatch(name):
            yield template.format(*match.groups())


@cache
def _by_shape(templates: tuple[str, ...]) -> Mapping[str, list[tuple[re.Pattern[str], str]]]:
    """The templates, by their names with underscores and without numbers."""
    found: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for template in templates:
        flat = template.replace(".", "_")
        pattern = re.compile(re.escape(flat).replace(r"\{\}", r"(\d+)"))
        shape = re.sub(r"\d+", "#", flat.replace("{}", "0"))
        found.setdefault(shape, []).append((pattern, template))
    return found
