"""The arguments of the reader of a PEFT type: the config and the rest of the file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.base_model import BaseModel
from jaxmix.converters.adapters.common.values import matches_site
from jaxmix.errors import CheckpointError, option, remedy

__all__ = ["Config", "File"]


@dataclass(frozen=True)
class Config:
    """The fields of an adapter's config.

    `read_config` has checked every supported field against its type's `ConfigFields`.

    Args:
        path: The file, for messages.
        family: PEFT's name of the type, in capitals.
        values: The fields, as stored.
    """

    path: Path
    family: str
    values: Mapping[str, Any]

    def flag(self, field: str) -> bool:
        """The value of a boolean field; false if absent."""
        return bool(self.values.get(field))

    def by_site(self, patterns: str, field: str, site: str) -> Any:
        """The value for a site: that of the first pattern that matches, otherwise the field's."""
        for key, value in (self.values.get(patterns) or {}).items():
            if matches_site(key, site):
                return value
        return self.values[field]


@dataclass(frozen=True)
class File:
    """What an adapter's file and its base provide for all sites.

    Args:
        config: The adapter's config.
        sites: The sites with factors, in the file's order.
        shared: Tensors of the whole model, by the type's names.
        base: The model that it was trained on, if given.
        cache: Values that the reader of one site stores for the next sites.
    """

    config: Config
    sites: tuple[str, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    base: BaseModel | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    def weight(self, site: str) -> np.ndarray:
        """The base's weight at a site, in PyTorch's axes.

        Raises:
            CheckpointError: If no base was given, or it has no such site.
        """
        return self._base(site).weight(site)

    def bias(self, site: str) -> np.ndarray:
        """The base's bias at a site.

        Raises:
            CheckpointError: If no base was given, or it has no such site, or no bias there.
        """
        return self._base(site).bias(site)

    def shape(self, site: str) -> tuple[int, ...]:
        """The shape of the base's weight at a site, in PyTorch's axes.

        Raises:
            CheckpointError: If no base was given, or it has no such site.
        """
        return self._base(site).shape(site)

    @property
    def transposed(self) -> bool | None:
        """False if ``fan_in_fan_out`` is off, None (unknown) if it is on.

        PEFT's config has one flag for all layers. PEFT corrects it for each layer by the layer's
        class and writes the value of the last one, so a flag that is on may be that of any layer.
        """
        return None if self.config.flag("fan_in_fan_out") else False

    def is_conv1d(self, site: str) -> bool:
        """Whether the base stores a site's weight as (in, out), as transformers' ``Conv1D`` does.

        Raises:
            CheckpointError: If no base was given, it has no such site, or ``fan_in_fan_out`` is on
                and the base does not determine the orientation.
        """
        answer = self._base(site).is_conv1d(site)
        if answer is None and self.config.flag("fan_in_fan_out"):
            raise CheckpointError(
                f"whether the weight at {site} is stored as (out, in) or (in, out) is stated "
                f"neither in a {self.config.family} adapter's file nor in "
                f"{self._base(site).description}. Pass a base with its biases, or its folder with "
                "config.json"
            )
        return bool(answer)

    def sizes(self, site: str) -> tuple[int, int]:
        """Outputs and inputs of the base's linear layer at a site.

        Raises:
            CheckpointError: As for `is_conv1d`, which a square weight does not need.
        """
        first, second = self.shape(site)[:2]
        if first == second or not self.is_conv1d(site):
            return first, second
        return second, first

    def torch(
        self, subject: str, how: str = "draws again from a seed with torch's generator"
    ) -> ModuleType:
        """Imports PyTorch, to compute what the file leaves out as PEFT does.

        Args:
            subject: What is left out, for the message.
            how: How PEFT obtains it.

        Raises:
            CheckpointError: If it is not installed.
        """
        try:
            import torch
        except ImportError as error:
            raise CheckpointError(
                f"{self.config.path.parent} leaves out {subject}, which PEFT {how}. Install torch "
                "(pip install 'jaxmix-peft[torch]') and load the adapter once; "
                f"{remedy('jaxmix.save', '`jaxmix convert --to mix`')} includes them, so torch "
                "is not needed again."
            ) from error
        return torch

    def _base(self, site: str) -> BaseModel:
        if self.base is None:
            raise CheckpointError(
                f"a {self.config.family} adapter can't be read without the base's weight at "
                f"{site}. Pass the base: {option('base', ..., of='jaxmix.load(…')}, its Hugging "
                "Face folder or its params. An adapter that "
                f"{remedy('jaxmix.save', '`jaxmix convert --to mix`')} writes does not need it "
                "again."
            )
        return self.base
