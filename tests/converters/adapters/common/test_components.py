"""A pipeline's models as one base, and one of them again."""

import numpy as np

from jaxmix.converters.adapters.common.base_model import BaseModel
from jaxmix.converters.adapters.common.components import component_of, join_models


def model(number: int, *modules: str) -> BaseModel:
    """Returns a model whose weights tell the model and the module."""
    return BaseModel(
        {name: (number, len(name)) for name in modules},
        lambda name: np.array([number, len(name)]),
        f"model {number}",
        lambda name: np.array([number]) if name == modules[0] else None,
        lambda name: name == modules[0],
    )


JOINED = join_models(
    {"transformer": model(1, "a.b", "c"), "transformer_2": model(2, "c", "a.b.c")}, "the pipeline"
)


def test_component_of_joined_models_is_the_model() -> None:
    """The names of two components may begin alike, and modules have dots of their own."""
    assert JOINED.modules == (
        "transformer.a.b",
        "transformer.c",
        "transformer_2.c",
        "transformer_2.a.b.c",
    )
    second = component_of(JOINED, "transformer_2")
    assert second is not None and second.modules == ("c", "a.b.c")
    assert second.shape("a.b.c") == (2, 5)
    np.testing.assert_array_equal(second.read_weight("a.b.c"), [2, 5])
    np.testing.assert_array_equal(second.read_bias("c"), [2])  # pyright: ignore
    assert second.read_bias("a.b.c") is None
    assert second.conv1d("c") is True and second.conv1d("a.b.c") is False
    assert second.description == "transformer_2 of the pipeline"


def test_absent_component_is_none() -> None:
    """A component is named in full, and a module is not one."""
    assert [component_of(JOINED, name) for name in ("trans", "transformer.c", "vae", "")] == [
        None
    ] * 4
