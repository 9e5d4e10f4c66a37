"""Targets by names of modules and of parameters; what can't be chosen is listed."""

from typing import Any

import numpy as np
import pytest

from jaxmix.errors import JaxmixError, LayoutError
from jaxmix.placement.layout import Layout, Rule
from jaxmix.placement.tree import Tree
from jaxmix.training.choosing import choose_targets, survey_with_rules
from jaxmix.training.initializers import KINDS
from jaxmix.training.targets import Rules

from ..messages import full_text

pytestmark = pytest.mark.usefixtures("no_compiling")

PARAMS: dict[str, Any] = {
    "h.0.q.weight": np.ones((6, 4), np.float32),
    "h.1.q.weight": np.ones((6, 4), np.float32),
    "moe.up": np.ones((3, 6, 4), np.float32),
    "lm_head.weight": np.ones((9, 4), np.float32),
}
_MODULES = "Its modules are:\n  h\n  h.0\n  h.0.q\n  h.1\n  h.1.q\n  lm_head\n  moe\n  moe.up"


def chosen(kind: str = "lora", *, parameters: Any = None, layout: Any = None, **fields: Any) -> Any:
    """Returns the names of the chosen modules."""
    rules = Rules(**{"target_modules": None, **fields})
    surveyed = survey_with_rules(Tree.of(PARAMS), layout, rules)
    return list(choose_targets(kind, KINDS[kind], surveyed, rules, parameters))


def test_modules_and_parameters_are_chosen_together() -> None:
    """Modules come in the tree's order, whatever the order of their names."""
    assert chosen(target_modules=["1.q", "q"]) == ["h.0.q", "h.1.q"]
    assert chosen(target_modules=["1.q"], parameters=["up"]) == ["h.1.q", "moe.up"]
    assert chosen(parameters=["moe.up"]) == ["moe.up"]
    # Named, a head is a target.
    assert chosen(target_modules="All-Linear") == ["h.0.q", "h.1.q"]
    assert chosen(target_modules=["lm_head"]) == ["lm_head"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"target_modules": ["q", "v"], "exclude_modules": ["w", "1.q"]},
            "names that match no module of the params:\n  target_modules: 'v'\n"
            f"  exclude_modules: 'w'\n{_MODULES}",
        ),
        (
            {"target_modules": ["q"], "exclude_modules": "1.q"},
            "names that match no module of the params:\n  exclude_modules: '1.q'\n" + _MODULES,
        ),
        (
            {"target_modules": ["q"], "exclude_modules": ".*q"},
            "target_modules ['q'] matches no module of the params. " + _MODULES,
        ),
        (
            {"target_modules": ["h.0", "moe.up", "0.q"], "kind": "loha"},
            "loha supports only linear, convolution modules, but the targets include:\n"
            "  h.0: it has no weight of floats\n  moe.up: parameter of shape (3, 6, 4)\n"
            "Name others, or leave these out with exclude_modules.",
        ),
    ],
)
def test_wrong_choices_are_listed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JaxmixError, match=full_text(message)):
        chosen(**fields)


def test_layout_of_unlisted_modules_needs_full_paths() -> None:
    """Rules with a class of characters can't be inverted, but they place a site that is given."""
    layout = Layout("mine", (Rule(r"block\.[12]", "h.1.q.weight"),))
    assert chosen(target_modules=["block.1"], layout=layout) == ["block.1"]
    message = (
        "the layout 'mine' matches no module of the params, and target_modules is ['block']. Pass "
        "a list of modules by their full paths."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        chosen(target_modules=["block"], layout=layout)
