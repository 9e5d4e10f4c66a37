"""transformers' classes with a head for a task, by the model's type: what their checkpoints hold.

The table is data, which ``python -m tests.heads`` writes from transformers.
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
    """A class of transformers with a head.

    Args:
        name: Its name.
        task: What PEFT calls its task.
        prefix: The prefix of its body.
        head: Its parameters beside the body: each with its number of rows, "labels", or None.
        needs: Parameters of the body that another class's checkpoint may lack.
        lacks: Parameters that another's body may have, and this has not.
    """

    name: str
    task: str
    prefix: str
    head: Mapping[str, int | str | None]
    needs: Sequence[str] = ()
    lacks: Sequence[str] = ()

    @property
    def parameters(self) -> dict[str, int | str | None]:
        """Those of the head, and those that it needs beside, each with its number of rows."""
        return {**self.head, **{f"{self.prefix}.{name}": None for name in self.needs}}

    def fits(self, leaves: Mapping[str, np.ndarray]) -> bool:
        """Whether these are whole modules of its head, with as many rows."""
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
    """The classes with a head of a model type, as config.json has it; none if it is unknown."""
    found = _table().get(model_type, {}) if isinstance(model_type, str) else {}
    return [HeadClass(name, **data) for name, data in found.items()]


@cache
def _table() -> dict[str, dict[str, Any]]:
    """The table, by model type and class."""
    return json.loads(TABLE.read_text(encoding="utf-8"))
