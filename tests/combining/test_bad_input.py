"""The exact errors of `combine`."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxmix import Adapter, combine, mix
from jaxmix.combining import METHODS
from jaxmix.errors import AdapterError, LayoutError, ShapeError
from jaxmix.families import LoRA

from ..laws.draws import Module, draw_update, normal, tree
from ..messages import full_text
from .looking import of

MODULE = Module("linear", (6, 8))
PARAMS = tree({"lin": MODULE}, 0)
KEY = jax.random.key(0)


def lora(rank: int = 2, shape: tuple[int, int] = (6, 8), name: str = "one") -> Adapter:
    rng = np.random.default_rng(rank)
    a, b = normal(rng, rank, shape[1]), normal(rng, shape[0], rank)
    return Adapter({"lin": LoRA(a, b, 0.5)}, name=name)


def other(kind: str, name: str = "two") -> Adapter:
    return Adapter({"lin": draw_update(kind, MODULE, 0)}, name=name)


PAIR = [lora(), lora(name="two")]

REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no method": (
        PAIR,
        {"method": "tie"},
        "there is no method 'tie', expected one of linear, svd, cat, ties, ties_svd, dare_linear, "
        "dare_linear_svd, dare_ties, dare_ties_svd, magnitude_prune, magnitude_prune_svd, slerp, "
        "breadcrumbs, sce, model_stock, knots.",
    ),
    "a method that is not a string": (
        PAIR,
        {"method": ["ties"]},
        "there is no method ['ties'], expected one of linear, svd, cat, ties, ties_svd, "
        "dare_linear, dare_linear_svd, dare_ties, dare_ties_svd, magnitude_prune, "
        "magnitude_prune_svd, slerp, breadcrumbs, sce, model_stock, knots.",
    ),
    "not a list": (
        lora(),
        {"method": "linear"},
        "combine got a single Adapter, expected a list of adapters and mixes: combine([a, b], "
        "params, method=…).",
    ),
    "a mix instead of a list": (
        mix(lora()),
        {"method": "linear"},
        "combine got a single Mix, expected a list of adapters and mixes: combine([a, b], params, "
        "method=…).",
    ),
    "no adapters": (
        [],
        {"method": "linear"},
        "combine got no adapters, expected adapters and mixes.",
    ),
    "other types in the list": (
        [lora(), 3, "x"],
        {"method": "linear"},
        "combine got a list with int, str, expected adapters and mixes.",
    ),
    "wrong number of weights": (
        PAIR,
        {"method": "linear", "weights": [1.0]},
        "combine: the number of weights is 1, expected 2, one per adapter.",
    ),
    "a number as weights": (
        PAIR,
        {"method": "linear", "weights": 0.5},
        "combine got weights=0.5, expected a list of real numbers.",
    ),
    "a weight that is a string": (
        PAIR,
        {"method": "linear", "weights": [1.0, "a"]},
        "a strength is 'a', expected a real number or an array without axes. For one strength per "
        "adapter write mix(a, b, strength=[…]).",
    ),
    "an infinite weight": (
        PAIR,
        {"method": "linear", "weights": [1.0, float("inf")]},
        "a strength is inf, expected a finite number.",
    ),
    "unused weights": (
        PAIR,
        {"method": "sce", "density": 0.5, "weights": [1.0, 1.0]},
        "the method 'sce' does not use weights. Leave it out, or use another method.",
    ),
    "several unused options": (
        PAIR,
        {"method": "linear", "density": 0.5, "majority_sign": "total", "outliers": 0.1},
        "the method 'linear' does not use density, majority_sign, outliers. Leave them out, or use "
        "another method.",
    ),
    "no density": (
        PAIR,
        {"method": "ties"},
        "the method 'ties' needs the share of the entries that it keeps. Pass it, above 0 and at "
        "most 1: density=0.5.",
    ),
    "density above 1": (
        PAIR,
        {"method": "ties_svd", "density": 1.5},
        "the method 'ties_svd' got density=1.5, expected the share of the entries that it keeps, "
        "above 0 and at most 1.",
    ),
    "density 0": (
        PAIR,
        {"method": "knots", "density": 0.0},
        "the method 'knots' got density=0.0, expected the share of the entries that it keeps, "
        "above 0 and at most 1.",
    ),
    "a boolean density": (
        PAIR,
        {"method": "sce", "density": True},
        "the method 'sce' got density=True, expected the share of the entries that it keeps, above "
        "0 and at most 1.",
    ),
    "negative outliers": (
        PAIR,
        {"method": "breadcrumbs", "density": 0.5, "outliers": -0.1},
        "the method 'breadcrumbs' got outliers=-0.1, expected the share of the entries that it "
        "drops as outliers, at least 0 and at most 1.",
    ),
    "no key": (
        PAIR,
        {"method": "dare_linear", "density": 0.5},
        "the method 'dare_linear' drops random entries and needs a key, such as "
        "key=jax.random.key(0).",
    ),
    "an unused key": (
        PAIR,
        {"method": "ties", "density": 0.5, "key": KEY},
        "the method 'ties' does not use key. Leave it out, or use another method.",
    ),
    "unknown majority": (
        PAIR,
        {"method": "ties", "density": 0.5, "majority_sign": "count"},
        "majority_sign is 'count', expected 'total' or 'frequency'.",
    ),
    "slerp of three": (
        [*PAIR, lora(name="three")],
        {"method": "slerp"},
        "the method 'slerp' got 3 adapters, expected exactly two.",
    ),
    "model stock of one": (
        [lora()],
        {"method": "model_stock"},
        "the method 'model_stock' got 1 adapter, expected at least two.",
    ),
    "slerp with a negative weight": (
        PAIR,
        {"method": "slerp", "weights": [1.5, -0.5]},
        "the method 'slerp' got the weights [1.5, -0.5], expected weights of at least 0 that are "
        "not both 0: it goes from the first adapter to the second, up to w₂/(w₁ + w₂).",
    ),
    "slerp with zero weights": (
        PAIR,
        {"method": "slerp", "weights": [0, 0]},
        "the method 'slerp' got the weights [0.0, 0.0], expected weights of at least 0 that are "
        "not both 0: it goes from the first adapter to the second, up to w₂/(w₁ + w₂).",
    ),
    "different ranks": (
        [lora(2), lora(3, name="two")],
        {"method": "ties", "density": 0.5},
        "the method 'ties' adds the factors of LoRAs, but these have different ranks:\n  lin: "
        "[2, 3]\nExpected equal ranks. Use 'ties_svd' or 'cat' instead.",
    ),
    "an unused rank": (
        PAIR,
        {"method": "linear", "rank": 4},
        "the method 'linear' keeps the rank of LoRAs, but got rank=4. Leave it out, or use 'svd'.",
    ),
    "rank 0": (
        PAIR,
        {"method": "svd", "rank": 0},
        "a rank is 0, expected a positive integer, a share of the energy between 0 and 1, such as "
        "0.99, or None for the effect's own.",
    ),
    "no params": (
        [lora(), other("OFT"), other("DoRA", "three")],
        {"method": "linear"},
        "combine got no base, but some updates are not LoRAs:\n  two: lin has OFT\n"
        "  three: lin has LoRA (DoRA)\nOnly LoRAs can be combined without one: write "
        "combine(adapters, params, …).",
    ),
    "no rank for other families": (
        [lora(), other("OFT")],
        {"method": "svd", "params": PARAMS},
        "the method 'svd' got no rank, but some updates are not LoRAs:\n  two: lin has OFT\nPass a "
        "rank such as rank=16, or a share of the energy such as rank=0.99.",
    ),
}


@pytest.mark.parametrize(("adapters", "how", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refused(adapters: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=full_text(message)):
        combine(adapters, **how)


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "slerp"])
def test_loras_of_two_models(method: str) -> None:
    """Shapes are compared between LoRAs, or with the base's weights if a base is passed."""
    mismatched = [lora(), lora(2, (6, 9), "two")]
    message = (
        "LoRAs at one site belong to weights of different shapes:\n  lin: (6, 8) and (6, 9)\nWere "
        "the adapters trained on one model?"
    )
    with pytest.raises(ShapeError, match=full_text(message)):
        combine(mismatched, method=method)
    with pytest.raises(
        ShapeError,
        match=full_text(
            "factors that do not fit the params:\n"
            "  lin: lora_A has shape (2, 9), expected (2, 8) from weight "
            "(6, 8)\n"
            "Was the adapter trained on another model, or on a base of "
            "another size?"
        ),
    ):
        combine(mismatched, PARAMS, method=method)
    with pytest.raises(
        LayoutError,
        match=full_text(
            "1 site of the adapters can't be placed in the params by the "
            "layout 'names':\n"
            "  nowhere: no leaf for its weight; the nearest are "
            "lin.weight\n"
            "Was the adapter trained on another model? If the leaves "
            "have other names, pass layout=jaxmix.Layout(…) with rules. "
            "No name map matches all of them to leaves."
        ),
    ):
        combine(
            [Adapter({"nowhere": of(adapter)["lin"]}, name=adapter.name) for adapter in PAIR],
            PARAMS,
            method=method,
        )


def test_every_method_runs_with_its_options() -> None:
    """Methods that use an SVD also accept a key."""
    for name, method in METHODS.items():
        options = {"density": 0.5} if method.prunes else {}
        options |= {"key": KEY} if method.random else {}
        assert combine(PAIR, PARAMS, method=name, **options).sites == ("lin",)
    # An SVD may be randomised, so these methods use a key.
    assert combine(PAIR, method="svd", key=KEY).sites == ("lin",)
    assert combine(PAIR, method="slerp", key=KEY, rank=2).sites == ("lin",)
