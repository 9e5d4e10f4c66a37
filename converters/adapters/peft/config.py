"""PEFT's adapter_config.json: read, and every field accounted for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.converters.adapters.peft.file import Config
from jaxmix.converters.adapters.peft.kind import Fields
from jaxmix.converters.adapters.peft.kinds import KINDS
from jaxmix.converters.adapters.peft.refusals import type_problem
from jaxmix.converters.adapters.peft.values import short, wrong_values
from jaxmix.errors import CheckpointError, UnsupportedError, listing, option
from jaxmix.untrusted.files import parse_json, read_small

__all__ = ["folder_text", "read_config"]


def read_config(path: Path) -> Config:
    """Reads adapter_config.json and refuses what would not be honoured.

    Args:
        path: the file.

    Returns:
        The config, of one of `KINDS`.

    Raises:
        CheckpointError: if it is missing, is no such config, or a field holds what it can't.
        UnsupportedError: if its type, or any of its fields, can't be honoured; all are listed.
    """
    values = _parse(path)
    family = values.get("peft_type")
    if not isinstance(family, str):
        raise CheckpointError(
            f"{path}: peft_type is {family!r}, expected one of {', '.join(KINDS)}. "
            "Is it the config of a PEFT adapter?"
        )
    if family not in KINDS:
        raise UnsupportedError(f"{path}: {type_problem(family)}")
    kind = KINDS[family]
    problems = [*_refused(values, kind.fields), *kind.judged(values)]
    if problems:
        raise UnsupportedError(
            f"{path}: fields of this {family} config that jaxmix can't honour:{listing(problems)}"
        )
    if wrong := wrong_values(values, kind.fields.honoured):
        raise CheckpointError(
            f"{path}: fields of this {family} config that do not hold what they should:"
            f"{listing(wrong)}\nWas the file edited? Take the one that save_pretrained wrote."
        )
    return Config(path, family, values)


def folder_text(folder: Path) -> str:
    """What lies in a folder, for a message."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return "no such folder" if not folder.exists() else "a folder that can't be listed"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "an empty folder"


def _parse(path: Path) -> dict[str, Any]:
    """The file as a dict."""
    try:
        values = parse_json(read_small(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; found {folder_text(path.parent)}. "
            f"Give the folder that PEFT's save_pretrained wrote.{_nested(path)}"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be read: {error.strerror}. Expected a file that you may read."
        ) from error
    except CheckpointError:
        raise
    except ValueError as error:  # no text, no JSON, or beyond its limits
        raise CheckpointError(
            f"{path} is not JSON: {error}. Expected the object that save_pretrained writes; save "
            "or download it again."
        ) from error
    if isinstance(values, dict):
        return values
    raise CheckpointError(
        f"{path} holds a {type(values).__name__}, expected a JSON object with peft_type and so on. "
        "Save or download it again."
    )


def _nested(path: Path) -> str:
    """Where else the config may lie: PEFT saves an adapter with its own name one folder down."""
    try:
        inner = sorted(found.parent.name for found in path.parent.glob(f"*/{path.name}"))
    except OSError:
        return ""
    return (
        f" There is one in {', '.join(inner[:5])}: say {option('subfolder', inner[0])}."
        if inner
        else ""
    )


def _refused(values: Mapping[str, Any], fields: Fields) -> list[str]:
    """The fields that are refused or unknown, and on."""
    problems = []
    for field, value in values.items():
        if field in fields.honoured or field in fields.harmless:
            continue
        if refusal := fields.refused.get(field):
            is_off = not value if refusal.is_off_when_empty else value is None or value is False
            if not is_off:
                problems.append(f"{field} = {short(value)}: {refusal.why}. {refusal.todo}")
        elif value is not None and value is not False and value not in ("", [], {}):
            problems.append(
                f"{field} = {short(value)}: not a field that this version of jaxmix knows. If it "
                "does not change the weights, take it out of the file."
            )
    return problems
