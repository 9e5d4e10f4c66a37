"""Inputs with one to three changes, each determined by its kind and number."""

import random

from ..case import Case
from ..kinds import made
from .tensors import tensors_changed
from .texts import bytes_changed, json_changed

__all__ = ["mutated"]


_BESIDE = ("README.md", "tokenizer.json", "generation_config.json")


def mutated(kind: str, number: int) -> Case:
    """The input of a kind with a number.

    Args:
        kind: one of `KINDS`.
        number: 0 for the valid input, else which mutation.

    Returns:
        The case, the same each time.
    """
    case, rng = made(kind), random.Random(f"{kind}:{number}")
    if number == 0:
        return case
    # An adapter's own files are changed more often than the base's, if the kind is not about these.
    is_base = kind.startswith("base-")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        paths = sorted(case.files)
        of_base = [path for path in paths if path.startswith(case.base)]
        of_adapters = [path for path in paths if path not in of_base]
        wanted = of_base if rng.random() < (0.8 if is_base else 0.25) else of_adapters
        if rng.random() < 0.95:  # the files with meaning
            wanted = [path for path in wanted if not path.endswith(_BESIDE)]
        if wanted or paths:
            case = _changed(case, rng.choice(wanted or paths), rng)
    return case


def _changed(case: Case, path: str, rng: random.Random) -> Case:
    """One file changed, gone, or in the place of another."""
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
