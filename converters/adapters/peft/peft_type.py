"""Describes one type of PEFT: its config's fields, its tensors, its reader and its writer."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxmix.converters.adapters.common.shapes import SiteTensors
from jaxmix.converters.adapters.common.values import NAMES, PATTERNS, RANKS, Check
from jaxmix.converters.adapters.peft.file import File
from jaxmix.families import Update

__all__ = [
    "ABOUT",
    "MERGE",
    "RANK_PATTERNS",
    "RETRAIN",
    "SAVED",
    "WHERE",
    "ConfigFields",
    "PeftContent",
    "PeftType",
    "Refusal",
]


class Refusal(NamedTuple):
    """The reason why a field is refused unless it is off, and the remedy.

    A field is off if it is null or false, and also if it is empty where PEFT itself tests for that.
    """

    reason: str
    remedy: str
    is_off_when_empty: bool = False


class ConfigFields(NamedTuple):
    """The fields of a type's config: supported (with a check of the value), harmless, refused.

    A test iterates over PEFT's dataclasses and fails for a field that is in none of these. A field
    that a newer PEFT adds is accepted while it is off (null, false, empty), and refused otherwise.
    """

    supported: dict[str, Check]
    harmless: frozenset[str]
    refused: dict[str, Refusal] = {}  # noqa: RUF012 - never modified


@dataclass(frozen=True)
class PeftContent:
    """The content of the files of a PEFT adapter.

    Args:
        fields: The fields of the type in the config.
        tensors: ``{"<site>.<parameter>": array}``.
        shared: Tensors of the whole model, by the type's names.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]
    shared: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PeftType:
    """A type of PEFT.

    Args:
        fields: Its config's fields.
        parameters: The tensors of a site: the ends of keys after the module's path.
        build: Returns the update of a site from the file and the site's tensors.
        write: Returns the content of PEFT's files for the updates of all sites, or raises an error
            if PEFT can't express them. None if the updates are written as another type (BONE as
            MISS, OSF as LORA).
        shared: The tensors that are stored once for the whole model.
        find_problems: Describes problems of a config that no single field shows.
        integers: The parameters that are integers.
        derive_tensors: Returns the tensors of sites that the file does not name, from the file and
            its base.
        with_equal_ranks: Returns the updates of all sites with one rank and one scale, for readers
            that know no patterns; None for a type that only PEFT reads.
    """

    fields: ConfigFields
    parameters: tuple[str, ...]
    build: Callable[[File, str, SiteTensors], Update]
    write: Callable[[Mapping[str, Any]], PeftContent] | None = None
    shared: tuple[str, ...] = ()
    find_problems: Callable[[Mapping[str, Any]], Iterable[str]] = lambda values: ()
    integers: tuple[str, ...] = ()
    derive_tensors: Callable[[File], Mapping[str, SiteTensors]] = lambda file: {}
    with_equal_ranks: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


# Fields that describe the adapter's origin and purpose, and its modules, which the keys name too.
ABOUT = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision "
    "task_type".split()
)
WHERE = frozenset("target_modules exclude_modules layers_to_transform layers_pattern".split())
SAVED = {"modules_to_save": NAMES}
RANK_PATTERNS = {"rank_pattern": RANKS, "alpha_pattern": PATTERNS}

# Remedies for refused fields.
RETRAIN = "Train it again without this."
MERGE = "Merge it with PEFT (merge_and_unload) and use the merged model as the base."
