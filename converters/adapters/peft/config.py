"""Reads PEFT's adapter_config.json and accounts for every field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.common.values import describe_wrong_values, short_json
from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.peft_type import ConfigFields
from jaxmix.converters.adapters.peft.refusals import type_problem
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["folder_text", "read_config"]


def read_config(path: Path) -> Config:
    """Reads adapter_config.json and refuses fields that would have no effect.

    Args:
        path: The file.

    Returns:
        The config, of a type in `PEFT_TYPES`.

    Raises:
        CheckpointError: If it is missing or not such a config, or a field has an invalid value.
        UnsupportedError: If its type, or one of its fields, is not supported; all are listed.
    """
    values = _parse(path)
    family = values.get("peft_type")
    if not isinstance(family, str):
        raise CheckpointError(
            f"{path}: peft_type is {family!r}, expected one of {', '.join(PEFT_TYPES)}. "
            "Is it the config of a PEFT adapter?"
        )
    if family not in PEFT_TYPES:
        raise UnsupportedError(f"{path}: {type_problem(family)}")
    peft_type = PEFT_TYPES[family]
    problems = [*_refused(values, peft_type.fields), *peft_type.find_problems(values)]
    if problems:
        raise UnsupportedError(
            f"{path}: fields of this {family} config that jaxmix does not support:"
            f"{listing(problems)}"
        )
    if wrong := describe_wrong_values(values, peft_type.fields.supported):
        raise CheckpointError(
            f"{path}: fields of this {family} config with invalid values:"
            f"{listing(wrong)}\nWas the file edited? Take the one that save_pretrained wrote."
        )
    return Config(path, family, values)


def folder_text(folder: Path) -> str:
    """Lists the files of a folder, for a message."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return "no such folder" if not folder.exists() else "a folder that can't be listed"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "an empty folder"


def _parse(path: Path) -> dict[str, Any]:
    """Parses the file."""
    try:
        values = parse_json(read_small(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; found {folder_text(path.parent)}. "
            f"Pass the folder that PEFT's save_pretrained wrote.{_nested(path)}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Expected a file that you may read."
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:  # not text, not JSON, or too large
        raise CheckpointError(
            f"{path} is not JSON: {error}. Expected the object that save_pretrained writes; save "
            "or download it again."
        ) from error
    if isinstance(values, dict):
        return values
    raise CheckpointError(
        f"{path} contains a {type(values).__name__}, expected a JSON object with peft_type. "
        "Save or download it again."
    )


def _nested(path: Path) -> str:
    """Suggests subfolders with a config: PEFT saves named adapters one folder down."""
    try:
        inner = sorted(config.parent.name for config in path.parent.glob(f"*/{path.name}"))
    except OSError:
        return ""
    return (
        f" There is one in {', '.join(inner[:5])}: pass {option('subfolder', inner[0])}."
        if inner
        else ""
    )


def _refused(values: Mapping[str, Any], fields: ConfigFields) -> list[str]:
    """Describes the fields that are on and refused or unknown."""
    problems = []
    for field, value in values.items():
        if field in fields.supported or field in fields.harmless:
            continue
        if refusal := fields.refused.get(field):
            is_off = not value if refusal.is_off_when_empty else value is None or value is False
            if not is_off:
                problems.append(
                    f"{field} = {short_json(value)}: {refusal.reason}. {refusal.remedy}"
                )
        elif value is not None and value is not False and value not in ("", [], {}):
            problems.append(
                f"{field} = {short_json(value)}: unknown to this version of jaxmix. If it does not "
                "change the weights, remove it from the file."
            )
    return problems
