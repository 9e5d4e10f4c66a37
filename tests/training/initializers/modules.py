"""Single modules, as initializers get them."""

from typing import Any

import numpy as np

from jaxmix.placement.layout import NAMES, Layout, Rule
from jaxmix.placement.tree import Tree
from jaxmix.training.modules import Target, target

__all__ = ["drawn", "linear", "only"]


def drawn(*shape: int, seed: int = 0) -> Any:
    """Returns random numbers in float32."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def only(params: dict[str, Any], site: str = "lin", conv1d: str | None = None) -> Target:
    """Returns the module of a site."""
    rules = (Rule(r"(.+)", r"\1.weight"), Rule(r"(.+)", r"\1.bias", part="bias"))
    layout = NAMES if conv1d is None else Layout("mine", rules, conv1d=conv1d)
    found = target(Tree.of(params), layout, site)
    assert found is not None
    return found


def linear(out: int, inputs: int, *, seed: int = 0, bias: bool = False) -> Target:
    """Returns a linear layer with random weights."""
    params = {"lin.weight": drawn(out, inputs, seed=seed)}
    return only(params | ({"lin.bias": drawn(out, seed=seed)} if bias else {}))
