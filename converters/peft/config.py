"""PEFT's adapter_config.json: read, and every field accounted for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxmix.converters.peft.fields import FAMILY_FIELDS, REFUSED_TYPES, Fields, Refusal
from jaxmix.errors import CheckpointError, UnsupportedError, listing

__all__ = ["Config", "read_config"]

# How `init_lora_weights` may start and leave the base as it was. EVA, MiCA and "orthogonal" choose
# the factors only; the others take something off the base when PEFT makes the layer.
_MILD_INITS = ("eva", "gaussian", "mica", "orthogonal")
_BASE_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
_CONVERT = (
    "Save it again with save_pretrained(…, path_initial_model_for_weight_conversion=…), which turns "
    "it into a plain LoRA of twice the rank."
)


@dataclass(frozen=True)
class Config:
    """The fields of one adapter's config, for whoever builds its updates.

    Args:
        path: the file, for messages.
        family: PEFT's name of the family, in capitals.
        values: the fields as they stand in the file.
    """

    path: Path
    family: str
    values: Mapping[str, Any]

    def number(self, field: str, least: float | None = None) -> float:
        """A field that must be a number, and at least ``least`` if that is given."""
        value = self.values.get(field)
        if _is_number(value) and (least is None or value >= least):
            return value
        bound = "" if least is None else f" of at least {least}"
        raise CheckpointError(
            f"{self.path}: {field} is {value!r}, expected a number{bound}. Was the file edited?"
        )

    def flag(self, field: str) -> bool:
        """A field that must be true or false; absent is false."""
        value = self.values.get(field)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise CheckpointError(
            f"{self.path}: {field} is {value!r}, expected true or false. Was the file edited?"
        )

    def by_site(self, pattern: str, field: str, site: str, least: float | None = None) -> float:
        """A number of one site: of the first pattern that matches it, else the field's.

        The matching is PEFT's: a pattern is a regular expression for the end of the module's path.
        """
        patterns = self.values.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.path}: {pattern} is {patterns!r}, expected an object.")
        for key, value in patterns.items():
            try:
                found = re.match(rf"(.*\.)?({key})$", site)
            except re.error as error:
                raise CheckpointError(
                    f"{self.path}: {pattern} has {key!r}, which is no regular expression: {error}."
                ) from error
            if found:
                if _is_number(value) and (least is None or value >= least):
                    return value
                raise CheckpointError(f"{self.path}: {pattern}[{key!r}] is {value!r}, not a number.")
        return self.number(field, least)


def read_config(path: Path) -> Config:
    """Reads adapter_config.json and refuses what would not be honoured.

    Args:
        path: the file.

    Returns:
        The config, of one of the six families.

    Raises:
        CheckpointError: if it is missing or is no such config.
        UnsupportedError: if its type, or any of its fields, can't be honoured; all are listed.
    """
    values = _parse(path)
    family = values.get("peft_type")
    if not isinstance(family, str):
        raise CheckpointError(
            f"{path}: peft_type is {family!r}, expected one of {', '.join(FAMILY_FIELDS)}. "
            "Is it the config of a PEFT adapter?"
        )
    if family not in FAMILY_FIELDS:
        raise UnsupportedError(f"{path}: {_type_refused(family)}")
    problems = [*_field_problems(values, FAMILY_FIELDS[family]), *_family_problems(values, family)]
    if problems:
        raise UnsupportedError(
            f"{path}: fields of this {family} config that jaxmix can't honour:{listing(problems)}"
        )
    return Config(path, family, values)


def _parse(path: Path) -> dict[str, Any]:
    """The file as a dict."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; found {_folder_text(path.parent)}. "
            "Give the folder that PEFT's save_pretrained wrote."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Save or download it again.") from error
    if isinstance(values, dict):
        return values
    raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a JSON object.")


def _folder_text(folder: Path) -> str:
    """What lies in a folder, for a message."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "an empty folder"


def _type_refused(family: str) -> str:
    """Why a peft_type is refused."""
    if family in REFUSED_TYPES:
        return f"peft_type {family!r} is refused: {REFUSED_TYPES[family]}."
    near = get_close_matches(family.upper(), FAMILY_FIELDS, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"peft_type {family!r} is unknown, expected one of {', '.join(FAMILY_FIELDS)}.{hint}"


def _field_problems(values: Mapping[str, Any], fields: Fields) -> list[str]:
    """The fields that are refused or unknown, and on."""
    problems = []
    for field, value in values.items():
        if field in fields.honoured | fields.harmless:
            continue
        if field in fields.refused:
            why, todo = fields.refused[field]
            # An empty list of invocation tokens still makes an aLoRA: only null is off.
            if value if field != "alora_invocation_tokens" else value is not None:
                problems.append(f"{field} = {_short(value)}: {why}. {todo}".rstrip())
        elif value not in (None, False, "", [], {}) or value == 0 and value is not False:
            problems.append(
                f"{field} = {_short(value)}: not a field that this version of jaxmix knows. If it "
                "does not change the weights, take it out of the file."
            )
    return problems


def _family_problems(values: Mapping[str, Any], family: str) -> list[str]:
    """What is honoured for some values only."""
    problems = []
    if family == "LORA":
        problems += _init_problems(values.get("init_lora_weights", True))
    own = {"LORA": "lora_only", "ADALORA": "lora_only", "OFT": "oft_only"}.get(family)
    if own is not None and (bias := values.get("bias", "none")) not in ("none", "all", own):
        problems.append(f"bias = {bias!r}: expected 'none', 'all' or {own!r}.")
    if family == "OFT":
        problems += _oft_problems(values)
    return problems


def _init_problems(init: Any) -> list[str]:
    """Initialisations that took something off the base's weights."""
    said = f"init_lora_weights = {init!r}"
    if init is None or isinstance(init, bool) or str(init).lower().startswith(_MILD_INITS):
        return []
    if str(init).lower().startswith("loftq"):
        why = "LoftQ replaced the base's weights by quantized ones; the factors fit only those"
        return [f"{said}: {why}. Merge it with PEFT onto that base."]
    if str(init).lower().startswith(_BASE_INITS):
        why = "it took the initial factors' product off the base's weights"
        return [f"{said}: {why}. {_CONVERT}"]
    return [f"{said}: unknown; it may change the base's weights. {_CONVERT}"]


def _oft_problems(values: Mapping[str, Any]) -> list[str]:
    """The two breaks in OFT's history."""
    if "oft_block_size" not in values:
        why = "saved by peft 0.15 or older, whose OFT is another formula with other tensors"
        return [f"oft_block_size is missing: {why}. Merge it with that version of PEFT."]
    if "use_cayley_neumann" not in values:
        return ["use_cayley_neumann is missing: which rotation was trained can't be told."]
    if values["use_cayley_neumann"] and _version(values.get("peft_version")) < (0, 18):
        why = "before peft 0.18 the Cayley-Neumann series counted its last term twice"
        said = f"use_cayley_neumann = true with peft_version = {values.get('peft_version')!r}"
        return [f"{said}: {why}. Merge it with peft 0.17, or train it again."]
    return []


def _version(text: Any) -> tuple[int, ...]:
    """The leading numbers of a version; nothing is the oldest."""
    found = re.match(r"(\d+)\.(\d+)", text) if isinstance(text, str) else None
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
