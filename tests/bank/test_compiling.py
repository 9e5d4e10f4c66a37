"""What is compiled to make a bank, and to call it."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Bank
from jaxmix.families import OFT, LoHa, LoKr, LoRA

from ..compiling import COMPILED, timed_events

SIZE = 12


def member(kinds: str, leaves: str, seed: int) -> Any:
    """A mix of two adapters, each at all leaves."""

    def draw(*shape: int) -> Any:
        return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)

    def update(kind: str) -> Any:
        match kind:
            case "a":
                return LoRA(draw(2, SIZE), draw(SIZE, 2), 1.0)
            case "h":
                pair = draw(SIZE, 2), draw(2, SIZE)
                return LoHa(*pair, *pair, 1.0)  # pyright: ignore[reportCallIssue]
            case "k":
                return LoKr((draw(3, 3),), (draw(4, 4),), 1.0)
            case _:
                return OFT(draw(4, 3))

    parts = [Adapter(dict.fromkeys(leaves, update(kind)), name=kind) for kind in kinds]
    return jaxmix.mix(*parts)


def params(leaves: str) -> dict[str, Any]:
    """A weight for each letter."""
    return {f"{name}.weight": np.ones((SIZE, SIZE), np.float32) for name in leaves}


@pytest.mark.parametrize("leaves, count", [("bc", 8), ("defg", 16)])
def test_one_program_makes_all_leaves_of_a_shape(leaves: str, count: int) -> None:
    """However many leaves and members there are: one for the operators, and one for the table."""
    pairs = "ah", "ko", "ao", "hk"
    members = {f"{i}": member(pairs[i % 4], leaves, i) for i in range(count)}
    base = params(leaves)
    jax.clear_caches()
    with timed_events() as events:
        jax.block_until_ready(Bank(members, base))
    # Constants of the constructor are programs too.
    assert events[COMPILED] <= 4


def test_a_program_sorts_the_rows_for_all_leaves_at_once() -> None:
    """Sorts for each leaf and structure took most of the time to compile."""

    def sorts(leaves: str) -> int:
        members = {f"{i}": member("ak", leaves, i) for i in range(4)}
        bank, base = Bank(members, params(leaves)), params(leaves)

        def run(bank: Any, base: Any, x: Any, who: Any) -> Any:
            return bank(lambda p, x: sum(x @ w.T for w in p.values()))(base, x, who)

        x, who = np.ones((4, 1, SIZE), np.float32), np.zeros(4, np.int32)
        text = jax.jit(run).lower(bank, base, x, who).compile().as_text()
        return str(text).count(" sort(")

    assert sorts("bc") == sorts("defg") > 0
