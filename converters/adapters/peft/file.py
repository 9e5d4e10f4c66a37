"""What a reader of one of PEFT's types is given: its config, and what else the file knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxmix.converters.adapters.base import BaseModel
from jaxmix.converters.adapters.peft.values import matches
from jaxmix.errors import CheckpointError, option

__all__ = ["Config", "File"]


@dataclass(frozen=True)
class Config:
    """The fields of one adapter's config, for whoever builds its updates.

    Every honoured field holds what its type's `Fields` say: `read_config` has looked.

    Args:
        path: the file, for messages.
        family: PEFT's name of the type, in capitals.
        values: the fields as they stand in the file.
    """

    path: Path
    family: str
    values: Mapping[str, Any]

    def flag(self, field: str) -> bool:
        """A field that is true or false; absent is false."""
        return bool(self.values.get(field))

    def by_site(self, patterns: str, field: str, site: str) -> Any:
        """The value for one site: of the first pattern that matches it, else the field's."""
        for key, value in (self.values.get(patterns) or {}).items():
            if matches(key, site):
                return value
        return self.values[field]


@dataclass(frozen=True)
class File:
    """An adapter's file, as far as all of its sites need it.

    Args:
        config: its config.
        sites: the sites with factors, in the file's order.
        shared: tensors of the whole model, by the type's name for them.
        base: the model that it was trained on, where the caller gave one.
        kept: what the reader of one site keeps for those after it.
    """

    config: Config
    sites: tuple[str, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def weight(self, site: str) -> np.ndarray:
        """The base's weight at a site, in PyTorch's axes.

        Raises:
            CheckpointError: if no base was given, or it has no such site.
        """
        return self._base(site).weight(site)

    def bias(self, site: str) -> np.ndarray:
        """The base's bias at a site.

        Raises:
            CheckpointError: if no base was given, or it has no such site, or no bias there.
        """
        return self._base(site).bias(site)

    def shape(self, site: str) -> tuple[int, ...]:
        """The shape of the base's weight at a site, in PyTorch's axes.

        Raises:
            CheckpointError: if no base was given, or it has no such site.
        """
        return self._base(site).shape(site)

    @property
    def transposed(self) -> bool | None:
        """What ``fan_in_fan_out`` says of any one site: False if it is off, else nothing.

        PEFT's config has one flag for all layers. PEFT corrects it for each layer by the layer's
        class, and writes what held for the last one; so that a flag that is on may be any layer's.
        """
        return None if self.config.flag("fan_in_fan_out") else False

    def is_conv1d(self, site: str) -> bool:
        """Whether the base stores a site's weight as (in, out), as transformers' ``Conv1D`` does.

        Raises:
            CheckpointError: if no base was given, it has no such site, or it does not tell and the
                config has ``fan_in_fan_out`` on.
        """
        found = self._base(site).is_conv1d(site)
        if found is None and self.config.flag("fan_in_fan_out"):
            raise CheckpointError(
                f"a {self.config.family} adapter's file does not tell whether the weight at {site} "
                f"is stored as (out, in) or as (in, out), and {self._base(site).what} does not "
                "either. Give a base with its biases, or its folder with config.json"
            )
        return bool(found)

    def sizes(self, site: str) -> tuple[int, int]:
        """Outputs and inputs of the base's linear layer at a site.

        Raises:
            CheckpointError: as `is_conv1d`; of a square weight it is not asked.
        """
        first, second = self.shape(site)[:2]
        if first == second or not self.is_conv1d(site):
            return first, second
        return second, first

    def torch(
        self, what: str, how: str = "draws anew from a seed with torch's generator"
    ) -> ModuleType:
        """PyTorch, to make what the file leaves out as PEFT does.

        Args:
            what: the things that are left out, for the message.
            how: what PEFT does to have them.

        Raises:
            CheckpointError: if it is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise CheckpointError(
                f"{self.config.path.parent} leaves out {what}, which PEFT {how}. Install torch "
                "(pip install 'jaxmix-peft[torch]') and load it once; jaxmix.save writes it with "
                "them, and then torch is needed no more."
            ) from error
        return torch

    def _base(self, site: str) -> BaseModel:
        if self.base is None:
            raise CheckpointError(
                f"a {self.config.family} adapter's file does not say what it needs of the base's "
                f"weight at {site}. Give the base: "
                f"{option('base', ..., of='jaxmix.load(…')}, its Hugging Face folder or its "
                "params. jaxmix.save writes the adapter so that it is not needed again."
            )
        return self.base
