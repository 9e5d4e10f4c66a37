"""Files changed in one to three places: refused with a reason, or read, and nothing left out.

Longer runs of the same (10,000 files and more) found what is listed in `FOUND`.
"""

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError

from .mutations import FILES, Made, mutated, write

SEEDS = range(15)
# Of these tests/fuzz knows the right answer.
FUZZED = (
    *(f"kohya {form}" for form in ("lora", "dora", "loha", "lokr")),
    *("dotted lora", "dotted metadata", "mlx lora", "mlx dora"),
)
# What once ended in another exception, in a number that is none, or in silence.
FOUND = [
    ("mlx lora", 8),  # a scale of the user's that is no number
    ("mlx lora", 11),
    ("kohya boft", 516),  # lora_up.bias beside BOFT was left out
    ("kohya ia3", 258),  # alpha beside IA3 was left out
    ("qwix stacked", 402),  # a tensor that is no factor was left out
]


def read(name: str, seed: int, folder: Path) -> Any:
    """The adapter in a changed file; None if there is none to be had."""
    made, rng = mutated(name, seed)
    if not made.tensors:
        return None
    with np.errstate(all="ignore"):
        path = write(made, folder, rng)
    try:
        return jaxmix.load(path, **made.options)
    except JaxmixError as error:
        assert str(error).strip() and len(str(error)) > 20
        return None


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("name", [name for name in FILES if name not in FUZZED])
def test_refused_or_finite(name: str, tmp_path: Path) -> None:
    """Never another exception, and never a number that is none."""
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        folder.mkdir(exist_ok=True)
        adapter = read(name, seed, folder)
        leaves = [] if adapter is None else jax.tree.leaves(adapter.updates)
        assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in leaves)


@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_found(name: str, seed: int, tmp_path: Path) -> None:
    """Each is refused."""
    assert read(name, seed, tmp_path) is None


# Where the original library reads no such number.
_WITHOUT_EFFECT = {"kohya lokr-full": "alpha"}


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_counts(name: str, tmp_path: Path) -> None:
    """With other numbers in it, whichever it is, the adapter is another one."""

    def loaded(made: Made, folder: str) -> tuple[Any, list[np.ndarray]]:
        (tmp_path / folder).mkdir()
        adapter = jaxmix.load(write(made, tmp_path / folder), **made.options)
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(adapter.updates)]
        return jax.tree.structure(adapter.updates), leaves

    structure, leaves = loaded(FILES[name](), "base")
    for i, key in enumerate(FILES[name]().tensors):
        made = FILES[name]()
        made.tensors[key] = made.tensors[key] + made.tensors[key].dtype.type(1)
        new_structure, new = loaded(made, str(i))
        same = new_structure == structure and all(
            np.array_equal(a, b) for a, b in zip(leaves, new, strict=True)
        )
        assert same == key.endswith(f".{_WITHOUT_EFFECT.get(name, '-')}"), key


def test_a_changed_file_is_the_same_each_time() -> None:
    """A seed says all."""
    one, two = (mutated("kohya lora", 3)[0].tensors for _ in range(2))
    assert list(one) == list(two) and isinstance(mutated("kohya lora", 3)[1], random.Random)
