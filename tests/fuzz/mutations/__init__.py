"""Inputs with one to three changes, each determined by its kind and number."""

import random

from ..case import Case
from ..kinds import valid_input
from .tensors import tensors_changed
from .texts import bytes_changed, json_changed

__all__ = ["mutated"]


_BESIDE = ("README.md", "tokenizer.json", "generation_config.json")


def mutated(kind: str, number: int) -> Case:
    """Returns the input of a kind with a number.

    Args:
        kind: One of `KINDS`.
        number: 0 for the valid input, else which mutation.

    Returns:
        The case, the same each time.
    """
    case, rng = valid_input(kind), random.Random(f"{kind}:{number}")
    if number == 0:
        return case
    # An adapter's own files are changed more often than the base's, if the kind is not about these.
    is_base = kind.startswith("base-")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        paths = sorted(case.files)
        of_base = [path for path in paths if path.startswith(case.base)]
        of_adapters = [path for path in paths if path not in of_base]
        paths_to_change = of_base if rng.random() < (0.8 if is_base else 0.25) else of_adapters
        if rng.random() < 0.95:  # the files with meaning
            paths_to_change = [path for path in paths_to_change if not path.endswith(_BESIDE)]
        if paths_to_change or paths:
            case = _changed(case, rng.choice(paths_to_change or paths), rng)
    return case


def _changed(case: Case, path: str, rng: random.Random) -> Case:
    """Returns the case with one file changed, removed, or replaced by another."""
    data, draw = case.files[path], rng.random()
    if draw < 0.02:
        return case.changed(path, None, "removed")
    if draw < 0.03:
        other = rng.choice(sorted(case.files))
        return case.changed(path, case.files[other], f"is {other}")
    if draw < 0.08:
        return case.changed(path, *bytes_changed(data, rng))
    if path.endswith(".safetensors"):
        return case.changed(path, *tensors_changed(data, rng))
    if path.endswith(".json"):
        return case.changed(path, *json_changed(data, rng))
    return case.changed(path, *bytes_changed(data, rng))
