"""What jaxmix knows of one of PEFT's types: its config's fields, its tensors, reading, writing."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.converters.adapters.peft.values import (
    NAMES,
    PATTERNS,
    RANKS,
    Check,
)
from jaxmix.families import Update

__all__ = [
    "ABOUT",
    "AGAIN",
    "MERGE",
    "RANK_PATTERNS",
    "SAVED",
    "WHERE",
    "Fields",
    "Kind",
    "Refusal",
    "Written",
]


class Refusal(NamedTuple):
    """Why a field is refused unless it is off, and what to do.

    Off is null or false; where PEFT itself looks for more than that, an empty value is off too.
    """

    why: str
    todo: str
    is_off_when_empty: bool = False


class Fields(NamedTuple):
    """The fields of one type's config: honoured (and what they hold), harmless, refused.

    A test walks PEFT's dataclasses and fails for a field that is in none of these; a field that a
    newer PEFT adds is accepted while it is off (null, false, empty) and refused when it is on.
    """

    honoured: dict[str, Check]
    harmless: frozenset[str]
    refused: dict[str, Refusal] = {}  # noqa: RUF012 - nobody writes into it


@dataclass(frozen=True)
class Written:
    """An adapter as PEFT writes it.

    Args:
        fields: the config's own fields.
        tensors: ``{"<site>.<parameter>": array}``.
        shared: tensors of the whole model, by the type's name for them.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One of PEFT's types.

    Args:
        fields: its config's fields, each of them accounted for.
        parameters: what it stores at a site, as the key ends after the module's path.
        build: from the file and the tensors of one site to the update.
        write: from the updates of all sites to what PEFT writes, or an error where it can't say it;
            None for a type whose updates are written as another's (BONE's as MISS, OSF's as LORA).
        shared: what it stores once for the whole model.
        judged: what is wrong with the config as a whole, in words.
        integers: those of its parameters that are whole numbers.
        unsaved: from the file and its base to the tensors of sites that the file does not name.
        leveled: from the updates of all sites to the same ones with one rank and one scale, for
            readers that know no patterns; None for a type that PEFT alone reads.
    """

    fields: Fields
    parameters: tuple[str, ...]
    build: Callable[[File, str, Factors], Update]
    write: Callable[[Mapping[str, Any]], Written] | None = None
    shared: tuple[str, ...] = ()
    judged: Callable[[Mapping[str, Any]], Iterable[str]] = lambda values: ()
    integers: tuple[str, ...] = ()
    unsaved: Callable[[File], Mapping[str, Factors]] = lambda file: {}
    leveled: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


# Who made it and for what, and where it was put: the keys of the file say where.
ABOUT = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision "
    "task_type".split()
)
WHERE = frozenset("target_modules exclude_modules layers_to_transform layers_pattern".split())
SAVED = {"modules_to_save": NAMES}
RANK_PATTERNS = {"rank_pattern": RANKS, "alpha_pattern": PATTERNS}

AGAIN = "Train it again without."
MERGE = "Merge it with PEFT (merge_and_unload) and use the merged model as the base."
