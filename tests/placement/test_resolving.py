"""`resolve`: one call from the sites of adapters to the leaves of a tree."""

import pickle

import numpy as np
import pytest

from jaxmix.errors import LayoutError
from jaxmix.families import LoRA
from jaxmix.families.base import Chain
from jaxmix.placement import resolve
from jaxmix.placement import sites as placed_sites

from ..messages import full_text

ONES = np.ones((2, 3), np.float32)


def chain(*, bias: bool = False) -> Chain:
    """A LoRA for a weight (2, 3), with strength 0.5."""
    return ((0.5, LoRA(ONES[:1], ONES[:, :1], 1.0, bias=ONES[:, 0] if bias else None)),)


def test_sites_have_places_and_forms() -> None:
    """A resolved site has its leaves, their forms, and its updates."""
    params = {"a": {"kernel": ONES.T, "bias": ONES[:, 0]}, "b.weight": ONES}
    resolved = resolve(params, {"a": chain(bias=True), "b": chain()}, None)
    a, b = resolved.sites
    assert (a.name, a.weight and a.weight.leaf, a.bias and a.bias.leaf) == (
        *("a", "a.kernel", "a.bias"),
    )
    assert a.weight_form and a.weight_form.transposed and a.bias_form
    assert b.weight_form and not b.weight_form.transposed and b.bias is None and b.bias_form is None
    assert a.chain == chain(bias=True) or a.chain[0][0] == 0.5
    assert resolved.tree.with_leaves(resolved.tree.leaves)["b.weight"] is params["b.weight"]


def test_layers_of_a_stack_share_a_form() -> None:
    """Forms do not contain the leaf's name: layers differ only in the index."""
    params = {"layers": {"q": {"kernel": np.ones((2, 3, 2), np.float32)}}}
    sites = {f"layers.{i}.q": chain() for i in range(2)}
    forms = [site.weight_form for site in resolve(params, sites, None).sites]
    (first, _), (second, _) = (form.split_index() for form in forms if form)
    assert first == second and hash(first) == hash(second)


def test_every_problem_is_an_error() -> None:
    """A site without a leaf is an error of the same call."""
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the layout 'names':\n"
            "  lost: no leaf for its weight; the nearest are b.weight\n"
            "Was the adapter trained on another model? If the leaves have other names, pass "
            "layout=jaxmix.Layout(…) with rules."
        ),
    ):
        resolve({"b.weight": ONES}, {"b": chain(), "lost": chain()}, None)


def test_similar_names_are_not_searched_before_the_message_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That search is slow, and the sites are often found by other names."""

    def searched(*_: object, **__: object) -> list[str]:
        raise AssertionError("searched")

    monkeypatch.setattr(placed_sites, "get_close_matches", searched)
    with pytest.raises(LayoutError) as caught:
        resolve({"b.weight": ONES}, {"lost": chain()}, None)
    with pytest.raises(AssertionError, match=r"\Asearched\Z"):
        str(caught.value)


def test_error_for_sites_without_a_leaf_survives_a_process() -> None:
    with pytest.raises(LayoutError) as caught:
        resolve({"b.weight": ONES}, {"lost": chain()}, None)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value) and isinstance(copied, LayoutError)
