"""`Initializer`: the options of a kind, and those that its name implies."""

from typing import Any

from jaxmix.training.initializers.initializer import Initializer

from .modules import linear


def start(key: Any, target: Any, *, rank: int = 8, use_dora: bool = False) -> Any:
    """Returns the arguments."""
    return key, target, rank, use_dora


def test_implied_options_are_set_and_not_offered() -> None:
    """As in DoRA, which is LoRA with an option."""
    dora, target = Initializer(start, fixed={"use_dora": True}), linear(3, 2)
    assert dora.options == {"rank": 8}
    assert dora.make("key", target, {"rank": 2}) == ("key", target, 2, True)
    assert dora.make_all("key", {"lin": target}, {}) == ("key", {"lin": target}, 8, True)
    assert Initializer(start).make("key", target, {}) == ("key", target, 8, False)
