"""Whether names can be in the order of a model's modules."""

import pytest

from jaxmix.converters.adapters.peft.model_order import modules_of, order_problem


@pytest.mark.parametrize(
    ("leaves", "modules"),
    [
        # The order of the names does not matter for a single module.
        ("a.k.weight a.q.weight", "a.k"),
        ("a.k.weight b.weight a.q.weight", "a.k"),
        # Within a list the numbers give the order.
        ("a.0.k.weight a.1.k.weight a.2.k.weight", "a.0.k a.1.k a.2.k"),
        # These two are in order either way; the enclosing block shows that it is the model's.
        ("a.0.mlp.fc1.weight a.0.mlp.fc2.weight a.0.ln.weight", "a.0.mlp.fc1 a.0.mlp.fc2"),
        ("fc1.weight fc1.bias fc2.weight fc2.bias", "fc1 fc2"),
    ],
)
def test_possible_order_of_the_model(leaves, modules):
    assert order_problem(leaves.split(), modules.split()) == ""


def test_sorted_as_strings():
    """A hyphen comes before the dot."""
    assert (
        order_problem(["q-k.w", "q.w"], ["q-k", "q"]) == "whose names in the whole model are sorted"
    )


def test_modules_come_before_their_inner_modules() -> None:
    """Each once; a leaf outside of any module adds none."""
    leaves = ["a.b.c.weight", "a.d.weight", "scale", "a.b.c.bias"]
    assert modules_of(leaves) == ["a", "a.b", "a.b.c", "a.d"]
    assert modules_of([]) == []


@pytest.mark.parametrize(
    ("leaves", "modules", "problem"),
    [
        ("a.q.w b.q.w a.k.w", "a.q a.k", "whose leaves of a are not adjacent"),
        ("a.2.q.w a.10.q.w", "a.10.q a.2.q", "in which a.10.q is before a.2.q"),
        ("a.0.k.w a.0.q.w", "a.0.k a.0.q", "whose names in a.0 are sorted"),
        ("k.b k.w q.b q.w", "k q", "whose names in the whole model are sorted"),
        # Sorted with numbers by their value, which no order of strings gives.
        ("k.2.w k.10.w q.w", "k q", "whose names in the whole model are sorted"),
        ("q.w k.w", "q k", ""),
    ],
)
def test_impossible_order_is_described(leaves: str, modules: str, problem: str) -> None:
    """PyTorch keeps a module's leaves together and counts lists up; only dicts are sorted."""
    assert order_problem(leaves.split(), modules.split()) == problem
