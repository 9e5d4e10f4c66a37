"""The transformers classes with a task head, by model type, and the tensors that they have.

The table is data that ``python -m tests.heads`` generates from transformers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["TABLE", "HeadClass", "head_classes"]

TABLE = Path(__file__).with_name("heads.json")


@dataclass(frozen=True)
class HeadClass:
    """A transformers class with a task head.

    Args:
        name: The class's name.
        task: PEFT's name of the task.
        prefix: The prefix of the body's parameters.
        head: The parameters outside the body, each with its number of rows, "labels", or None.
        needs: Parameters of the body that another class's checkpoint may lack.
        lacks: Parameters that another class's body may have and this one lacks.
    """

    name: str
    task: str
    prefix: str
    head: Mapping[str, int | str | None]
    needs: Sequence[str] = ()
    lacks: Sequence[str] = ()

    @property
    def parameters(self) -> dict[str, int | str | None]:
        """The parameters of the head and those in ``needs``, each with its number of rows."""
        return {**self.head, **{f"{self.prefix}.{name}": None for name in self.needs}}

    def fits(self, leaves: Mapping[str, np.ndarray]) -> bool:
        """Whether the leaves are all the parameters of some head modules, with matching rows."""
        rows = self.parameters
        sites = {name.rpartition(".")[0] for name in leaves}
        if {name for name in rows if name.rpartition(".")[0] in sites} != leaves.keys():
            return False
        return all(
            not isinstance(n, int) or len(leaf) == n
            for name, leaf in leaves.items()
            for n in [rows[name]]
        )


def head_classes(model_type: Any) -> list[HeadClass]:
    """Returns the classes for a model type of config.json; empty if the type is unknown."""
    classes = _table().get(model_type, {}) if isinstance(model_type, str) else {}
    return [HeadClass(name, **data) for name, data in classes.items()]


@cache
def _table() -> dict[str, dict[str, Any]]:
    """Returns the table by model type and class."""
    # The package's own data: the reader for foreign JSON is not needed.
    return json.loads(TABLE.read_text(encoding="utf-8"))
