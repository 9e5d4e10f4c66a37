"""The table of classes with heads is what the installed transformers says."""

import json

import pytest

from ..heads import FILE, TASKS, described

TABLE = json.loads(FILE.read_text())
_MAPPINGS = {short: name for name, short in TASKS.items()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2", "vit"])
def test_the_table_is_still_that(model_type: str) -> None:
    """Heads, prefixes, and what other classes of the model have more or less."""
    for name, row in TABLE[model_type].items():
        assert described(model_type, name, _MAPPINGS[row["task"]]) == row
