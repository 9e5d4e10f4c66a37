"""Modules that a file contains twice are detected by their tensors."""

import numpy as np
import pytest

from jaxmix.converters.adapters.lycoris.doubles import is_double

DOWN = np.arange(6.0).reshape(2, 3)
UP = np.arange(8.0).reshape(4, 2)


def lora(
    up: np.ndarray, down: np.ndarray = DOWN, alpha: float | None = None
) -> dict[str, np.ndarray]:
    """Returns a LoRA's tensors; without alpha, it is the rank."""
    tensors = {"lora_up.weight": up, "lora_down.weight": down}
    return tensors if alpha is None else {**tensors, "alpha": np.array(alpha)}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (lora(UP), True),
        (lora(UP, alpha=2.0), True),  # the rank is the default
        (lora(UP, alpha=1.0), False),
        (lora(UP + 1), False),
        (lora(UP, DOWN + 1), False),
        ({**lora(UP), "dora_scale": np.ones(4)}, False),
    ],
)
def test_module_is_a_double_if_all_tensors_agree(other: dict, expected: bool) -> None:
    assert is_double(lora(UP), [other]) is expected
    assert is_double(other, [lora(UP)]) is expected


def test_modules_without_factors_are_compared_too() -> None:
    """They have no rank, so no alpha is assumed."""
    assert is_double({"diff": UP}, [{"diff": UP}])
    assert not is_double({"diff": UP}, [{"diff": UP, "alpha": np.array(2.0)}])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([lora(UP[:1]), lora(UP[1:])], True),
        ([lora(UP[:1], alpha=2.0), lora(UP[1:])], True),
        ([lora(UP[1:]), lora(UP[:1])], False),  # in another order
        ([lora(UP[:1]), lora(UP[1:3])], False),
        ([lora(UP[:1]), lora(UP[1:], DOWN + 1)], False),
        ([lora(UP[:1], DOWN + 1), lora(UP[1:])], False),
        ([lora(UP[:1]), lora(UP[1:], alpha=4.0)], False),
        ([lora(UP[:1]), {**lora(UP[1:]), "dora_scale": np.ones(3)}], False),
        ([lora(UP[:1]), {"diff": UP[1:]}], False),
    ],
)
def test_module_is_a_double_of_its_rows(parts: list[dict], expected: bool) -> None:
    """Each part has the same down factor and alpha, and its rows of the up factor."""
    assert is_double(lora(UP), parts) is expected


def test_rows_of_other_forms_are_not_compared() -> None:
    """Equal tensors besides the LoRA's, such as DoRA's norms, do not make a module a double."""
    scale = {"dora_scale": np.ones(4)}
    parts = [{**lora(UP[:1]), **scale}, {**lora(UP[1:]), **scale}]
    assert is_double({**lora(UP), **scale}, parts) is False
