"""PEFT folders with one to three changes: refused with a reason, or read completely.

The folders are those that jaxmix writes for each row of the families' contract. Longer runs, of
50,000 folders, found the cases in `FOUND`.
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix import JaxmixError
from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES

from ....families.table import ROWS
from ..formats.mutations import MUTATIONS, Content, write
from .written import base_of, folders

SEEDS = (range(2), pytest.param(range(2, 6), marks=pytest.mark.thorough))
VALUES: list[Any] = [
    None,
    0,
    1,
    -1,
    3,
    2.5,
    1e400,
    True,
    False,
    "",
    "x",
    [],
    {},
    ["a"],
    [1],
    {"a": 1},
]
VALUES += [{"nblocks": "x", "target_modules_bd_a": ["proj"]}, {"nblocks": 3}, 2**62]
VALUES += [
    {"nblocks": 2, "target_modules_bd_b": ["proj"]},
    float("nan"),
    10**400,
    {"a": None},
    {"[": 1},
    [[1, 2]],
    "none",
    "bat",
    {"proj": 3},
]
# Types whose files omit something.
DRAWN = ("ADAMSS", "FOURIERFT", "TINYLORA", "WAVEFT")
# Changes of tensors; the config has its own.
TENSORS = ("drop", "rename", "shape", "dtype", "number", "foreign")


NAMES = [name for name, row in ROWS.items() if row]
# For these tests/fuzz knows the right answer.
FUZZED = (
    "lora",
    "lora rslora",
    "lora bias",
    "dora",
    "adalora",
    "loha",
    "lokr full",
    "lokr both factored",
    "oft",
    "oft 5 terms",
    "ia3",
    "ia3 feedforward",
)


def _save(folder: Path, content: Content) -> Path:
    """Writes both files with PEFT's names, with changed bytes."""
    folder.mkdir(exist_ok=True)
    write(content, folder)
    (folder / "adapters.safetensors").rename(folder / "adapter_model.safetensors")
    return folder


def _changed(name: str, seed: int) -> Content:
    rng = random.Random(f"{name} {seed}")
    tensors, config = folders()[name]
    content = Content(dict(tensors), {}, json.loads(json.dumps(config)), {})
    for _ in range(rng.choice([1, 1, 2, 3])):
        if rng.random() < 0.4:
            fields = PEFT_TYPES[config["peft_type"]].fields.supported
            field = rng.choice([*fields, *config, "mystery"])
            assert content.config is not None
            content.config[field] = rng.choice(VALUES)
        elif content.tensors:
            MUTATIONS[rng.choice(TENSORS)](content, rng)
    return content


@pytest.mark.one_of(2)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("seeds", SEEDS, ids=["few", "more"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FUZZED])
def test_refused_or_finite(name: str, seeds: range, tmp_path: Path) -> None:
    """No other exception is raised; adapters that are read compose, or their shapes are refused."""
    if name not in folders():
        return
    base = base_of(name)
    for seed in seeds:
        content = _changed(name, seed)
        if not content.tensors:
            continue
        try:
            adapter = jaxmix.load(_save(tmp_path / str(seed), content), base=base)
            assert all(
                np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves(adapter)
            )
            jax.eval_shape(lambda a=adapter: jaxmix.compose(base, a))
        except JaxmixError as error:
            assert len(str(error)) > 20


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_counts(name: str, tmp_path: Path) -> None:
    """Without it the folder is refused; with other numbers the adapter differs."""
    if name not in folders():
        return
    tensors, config = folders()[name]
    if config["peft_type"] in DRAWN and find_spec("torch") is None:
        pytest.skip("PEFT draws a part of it with torch")

    def loaded(folder: str, tensors: dict[str, np.ndarray]) -> Any:
        return jaxmix.load(
            _save(tmp_path / folder, Content(tensors, {}, config, {})), base=base_of(name)
        )

    leaves = jax.tree.leaves(loaded("base", tensors).updates)
    for i, key in enumerate(tensors):
        if not tensors[key].size:
            continue
        changed = {**tensors, key: tensors[key] + tensors[key].dtype.type(1)}
        try:
            new = jax.tree.leaves(loaded(str(i), changed).updates)
        except JaxmixError:
            continue
        assert len(new) != len(leaves) or any(
            not np.array_equal(a, b) for a, b in zip(leaves, new, strict=True)
        ), key


def test_most_types_are_covered() -> None:
    """All types that can be written are covered, so the tests above test something."""
    types = {config["peft_type"] for _, config in folders().values()}
    # These rows have no known rank or seed; PSOFT's file does not contain A and B.
    unwritten = {"ADAMSS", "PSOFT", "SHIRA", "SUPERTUNING"}
    # These are written as MISS and LORA.
    assert set(PEFT_TYPES) - types == {*unwritten, "BONE", "OSF"}


def _set(**fields: Any) -> Any:
    return lambda content: content.config.update(fields)


def _flat(end: str) -> Any:
    """A factor without axes."""

    def change(content: Content) -> None:
        key = next(key for key in content.tensors if key.endswith(end))
        content.tensors[key] = np.array(1.0, np.float32)

    return change


# Inputs that once raised another exception, or used all memory.
FOUND: dict[str, tuple[str, Any, str]] = {
    "a rank beyond all floats": ("lora", _set(r=10**400), "expected a positive integer"),
    "a factor without axes": ("expert lora", _flat("lora_A.weight"), "lora_A.weight (), "),
    "a variant that is a list": ("road_1", _set(variant=["a"]), "expected 'road_1' or 'road_2'"),
    "weights without axes": ("randlora", _flat("lambda"), "randlora_lambda has shape ()"),
    "a seed beyond 64 bits": ("waveft", _set(random_loc_seed=10**400), "an integer"),
    "levels beyond all memory": ("peanut", _set(depth=2**62), f"expected {2**62} encoders"),
    "blocks that are a word": (
        "lora",
        _set(use_bdlora={"nblocks": "x", "target_modules_bd_a": ["proj"]}),
        'nblocks is "x" in the config, expected a positive integer',
    ),
    "a group that is a word": (
        "lora",
        _set(use_qalora=True, qalora_group_size="x"),
        'qalora_group_size is "x" in the config',
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_past_failures(case: str, tmp_path: Path) -> None:
    """Each case is refused with a message."""
    name, change, message = FOUND[case]
    row = next(row for row in NAMES if row.startswith(name))
    tensors, config = folders()[row]
    content = Content(dict(tensors), {}, dict(config), {})
    change(content)
    with pytest.raises(JaxmixError) as caught:
        jaxmix.load(_save(tmp_path / "x", content), base=base_of(row))
    assert message in str(caught.value)
