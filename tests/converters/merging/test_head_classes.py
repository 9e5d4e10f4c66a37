"""The table of transformers' classes with a task head."""

import json
from typing import Any

import numpy as np
import pytest

from jaxmix.converters.merging.head_classes import TABLE, HeadClass, head_classes


def test_table() -> None:
    """Some of its entries; tests/parity/test_heads.py compares it with transformers."""
    table = json.loads(TABLE.read_text())
    assert sum(map(len, table.values())) > 300
    assert table["llama"]["LlamaForSequenceClassification"] == {
        "task": "SEQ_CLS",
        "prefix": "model",
        "head": {"score.weight": "labels"},
    }


@pytest.mark.parametrize("model_type", [None, "", "no_such_model", 3, ["llama"]])
def test_unknown_model_type_has_no_classes(model_type: Any) -> None:
    """config.json may contain anything, also values that no dict could look up."""
    assert head_classes(model_type) == []


HEAD = {"dense.weight": None, "dense.bias": None, "out.weight": 2, "score.weight": "labels"}
CLASS = HeadClass("Some", "SEQ_CLS", "model", HEAD, needs=("pooler.weight",))


@pytest.mark.parametrize(
    ("leaves", "fits"),
    [
        ({"score.weight": 5}, True),  # any number of labels
        ({"dense.weight": 4, "dense.bias": 4}, True),
        ({"dense.weight": 4}, False),  # one leaf of two
        ({"out.weight": 2, "score.weight": 3}, True),
        ({"out.weight": 3}, False),  # this class has two rows there
        ({"score.weight": 3, "score.bias": 3}, False),  # the class has no such bias
        ({"classifier.weight": 3}, False),
        ({"model.pooler.weight": 4}, True),  # a part of the body that a checkpoint may lack
        ({"pooler.weight": 4}, False),
    ],
)
def test_leaves_fit_if_they_are_whole_modules(leaves: dict[str, int], fits: bool) -> None:
    """All leaves of each module must be there, and fixed numbers of rows must match."""
    assert CLASS.fits({name: np.ones((rows, 3)) for name, rows in leaves.items()}) is fits
