"""Files with random changes are refused with a reason, or read without ignoring any tensor.

Longer runs (10,000 files and more) found the cases in `FOUND`.
"""

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError

from .mutations import FILES, Content, mutated, write

SEEDS = range(15)
# tests/fuzz knows the right answer for these.
FUZZED = (
    *(f"kohya {form}" for form in ("lora", "dora", "loha", "lokr")),
    *("dotted lora", "dotted metadata", "mlx lora", "mlx dora"),
)
# Cases that once raised another exception, gave NaN, or ignored a tensor silently.
FOUND = [
    ("mlx lora", 8),  # the user's scale is not a number
    ("mlx lora", 11),
    ("kohya boft", 516),  # lora_up.bias next to BOFT was ignored
    ("kohya ia3", 258),  # alpha next to IA3 was ignored
    ("qwix stacked", 402),  # a tensor that is not a factor was ignored
]


def read(name: str, seed: int, folder: Path) -> Any:
    """Returns the adapter of a changed file, or None if the file is refused."""
    content, rng = mutated(name, seed)
    if not content.tensors:
        return None
    with np.errstate(all="ignore"):
        path = write(content, folder, rng)
    try:
        return jaxmix.load(path, **content.options)
    except JaxmixError as error:
        assert str(error).strip() and len(str(error)) > 20
        return None


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("name", [name for name in FILES if name not in FUZZED])
def test_changed_file_is_refused_or_finite(name: str, tmp_path: Path) -> None:
    """A changed file raises only JaxmixError, and loads only finite numbers."""
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir(exist_ok=True)
        adapter = read(name, seed, folder)
        leaves = [] if adapter is None else jax.tree.leaves(adapter.updates)
        assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in leaves)


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_case_found_earlier_is_refused(name: str, seed: int, tmp_path: Path) -> None:
    """Each case that was once read wrongly is refused."""
    assert read(name, seed, tmp_path) is None


# The original library ignores these tensors.
_WITHOUT_EFFECT = {"kohya lokr-full": "alpha"}


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_changes_the_adapter(name: str, tmp_path: Path) -> None:
    """Other values in any tensor give another adapter."""

    def loaded(content: Content, folder: str) -> tuple[Any, list[np.ndarray]]:
        (tmp_path / folder).mkdir()
        adapter = jaxmix.load(write(content, tmp_path / folder), **content.options)
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(adapter.updates)]
        return jax.tree.structure(adapter.updates), leaves

    structure, leaves = loaded(FILES[name](), "base")
    for i, key in enumerate(FILES[name]().tensors):
        content = FILES[name]()
        content.tensors[key] = content.tensors[key] + content.tensors[key].dtype.type(1)
        new_structure, new = loaded(content, str(i))
        same = new_structure == structure and all(
            np.array_equal(a, b) for a, b in zip(leaves, new, strict=True)
        )
        assert same == key.endswith(f".{_WITHOUT_EFFECT.get(name, '-')}"), key


def test_mutation_is_deterministic() -> None:
    """A seed determines the changes."""
    first, second = (mutated("kohya lora", 3)[0].tensors for _ in range(2))
    assert list(first) == list(second) and isinstance(mutated("kohya lora", 3)[1], random.Random)
