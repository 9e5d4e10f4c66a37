"""The table of model classes with heads matches the installed transformers."""

import json

import pytest

from ..heads import FILE, TASKS, described

TABLE = json.loads(FILE.read_text())
_MAPPINGS = {task: name for name, task in TASKS.items()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "vit"])
def test_table_of_heads_is_current(model_type: str) -> None:
    """Heads, prefixes, and the differences between a model's classes are as recorded."""
    for name, row in TABLE[model_type].items():
        assert described(model_type, name, _MAPPINGS[row["task"]]) == row
