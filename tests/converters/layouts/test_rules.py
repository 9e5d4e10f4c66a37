"""What rules can state about a leaf, and every way to run a mix through it: law 3.

Each form has NumPy's own way from the leaf to PyTorch's matrix, written without einops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Layout, Rule
from jaxmix.errors import LayoutError
from jaxmix.unmerged.leaf import Factored, NotApart

from ...compiling import COMPILED, timed_events
from ...laws.draws import Module, draw_update, normal
from ...laws.truth import fold
from ...messages import full_text
from ...uncompiled import uncompiled

TWO = (("two", 2),)
KINDS = ("LoRA", "DoRA", "LoHa", "OFT", "Replace")


@dataclass(frozen=True)
class Held:
    """A leaf's shape, PyTorch's matrix (12, 8) of one of its sites out of it, and the rules."""

    leaf: tuple[int, ...]
    get: Callable[[np.ndarray, int], np.ndarray]
    rules: tuple[Rule, ...]
    sites: int = 1
    factor: float = 1.0


def halves(x: np.ndarray) -> np.ndarray:
    """Even entries of the last axis before the odd ones."""
    return np.concatenate([x[..., ::2], x[..., 1::2]], -1)


def heads(x: np.ndarray) -> np.ndarray:
    """(D, N, H) as (N·H, D)."""
    return x.transpose(1, 2, 0).reshape(12, 8)


ROTARY = "d n (h two) -> (n two h) d"
SCALE = (("h", -0.5), ("two", -0.5))
HELD = {
    "interleaved": Held(
        (8, 3, 4), lambda x, i: heads(halves(x)), (Rule("a0", "w", ROTARY, None, "weight", TWO),)
    ),
    "interleaved and scaled": Held(
        (8, 3, 4),
        lambda x, i: heads(halves(x)) * 2,
        (Rule("a0", "w", ROTARY, sizes=TWO, scale=SCALE),),
        factor=0.5,
    ),
    "interleaved, scaled, scanned": Held(
        (8, 2, 3, 4),
        lambda x, i: heads(halves(x[:, i])) * 2,
        (Rule(r"a(\d)", "w", ROTARY, r":, \1", sizes=TWO, scale=SCALE),),
        sites=2,
        factor=0.5,
    ),
    "interleaved columns": Held(
        (12, 8),
        lambda x, i: halves(x),
        (Rule("a0", "w", "o (i two) -> o (two i)", sizes=TWO),),
    ),
    "scaled by a number": Held(
        (12, 8), lambda x, i: x / 3, (Rule("a0", "w", scale=3.0),), factor=3
    ),
    "scaled and turned": Held(
        (8, 12), lambda x, i: x.T / 3, (Rule("a0", "w", "i o -> o i", scale=3),), factor=3
    ),
    "one of three, scaled": Held(
        (3, 12, 8),
        lambda x, i: x[i] * (4, 1, 1)[i],
        (Rule("a0", "w", index="0", scale=0.25), Rule(r"a([12])", "w", index=r"\1")),
        sites=3,
    ),
    "parts of a stack": Held(
        (2, 8, 36),
        lambda x, i: x[i // 3, :, 12 * (i % 3) : 12 * (i % 3) + 12].T,
        (Rule(r"a(\d)", "w", "i o -> o i", r"{\1//3}, :, {\1%3}/3"),),
        sites=6,
    ),
    "the last four of seven parts": Held(
        (8, 21),
        lambda x, i: x[:, 9:].T,
        (Rule("a0", "w", "i o -> o i", ":, 3:7/7"),),
    ),
    "layers that alternate": Held(
        (8, 2, 3, 4),
        lambda x, i: heads(x[:, i // 2]),
        (
            Rule(r"a([02])", "w", "d n h -> (n h) d", r":, {\1//2}"),
            Rule(r"a([13])", r"v.{\1%2}", "d n h -> (n h) d", r":, {\1//2}"),
        ),
        sites=4,
    ),
}


def adapters(held: Held) -> list[Adapter]:
    """One of every kind at each site, at other strengths."""
    module = Module("linear", (12, 8))
    return [
        Adapter(
            {f"a{j}": draw_update(kind, module, 10 * i + j) for j in range(held.sites)},
            0.4 + i / 9,
            kind,
        )
        for i, kind in enumerate(KINDS)
    ]


def tree(held: Held) -> dict[str, Any]:
    """The leaves, no two elements alike."""
    rng = np.random.default_rng(0)
    return {"w": normal(rng, *held.leaf), "v": {"1": normal(rng, *held.leaf)}}


def matrix(held: Held, params: Any, i: int) -> np.ndarray:
    """PyTorch's matrix of a site."""
    has_odd = any(rule.leaf.startswith("v.") for rule in held.rules)
    return held.get(np.asarray(params["v"]["1"] if has_odd and i % 2 else params["w"]), i)


def truth(held: Held, mixed: list[Adapter], params: Any, i: int) -> np.ndarray:
    """The same after the adapters."""
    chain = [(part.strength, part.updates[f"a{i}"]) for part in mixed]
    new = fold(chain, matrix(held, params, i))[0]
    assert new is not None
    return new


same = partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_composed_leaves_match_the_formulas(held: Held) -> None:
    """All kinds are mixed uncompiled; one kind is compiled with its buffers donated."""
    layout, old = Layout("mine", held.rules), tree(held)
    with jax.enable_x64(True):
        for mixed in (adapters(held), adapters(held)[1:2]):
            params, is_one = jax.tree.map(jnp.asarray, old), len(mixed) == 1
            with uncompiled(apply=not is_one):
                new = jaxmix.compose(params, mixed, layout=layout, donate=is_one)
            for i in range(held.sites):
                same(matrix(held, new, i), truth(held, mixed, old, i))


@pytest.mark.one_of(2)
@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_factored_leaves_match_the_composed(held: Held) -> None:
    """The base and the map are kept apart where the leaf's axes are not both rows and columns."""
    layout, old = Layout("mine", held.rules), tree(held)
    with jax.enable_x64(True), uncompiled():
        params = jax.tree.map(jnp.asarray, old)
        for mixed in (adapters(held)[:2], adapters(held)[3:4]):
            leaves = jaxmix.attach(params, mixed, layout=layout)
            factored = [x for x in jax.tree.leaves(leaves, is_leaf=_held) if _held(x)]
            all_expected = jax.tree.leaves(jaxmix.compose(params, mixed, layout=layout))
            made_dense = [leaf.dense() for leaf in factored]
            apart = [leaf.apart() for leaf in factored]
            # A rotation of inputs can't act on a part of the rows only.
            is_shared = "OFT" in (one.name for one in mixed) and "parts" in _name(held)
            for terms, dense, expected in zip(
                apart, made_dense, all_expected[-len(factored) :], strict=True
            ):
                same(dense, expected)
                if "one of three" not in _name(held):
                    assert isinstance(terms, NotApart) == is_shared
                if not isinstance(terms, NotApart):
                    same(terms.dense(), expected)


def _held(x: Any) -> bool:
    return isinstance(x, Factored)


def _name(held: Held) -> str:
    return next(name for name, candidate in HELD.items() if candidate is held)


@pytest.mark.parametrize("name", ["interleaved and scaled", "interleaved, scaled, scanned"])
def test_functions_of_the_leaf_match(name: str) -> None:
    """With factors and in a bank, a function of the leaf gives the dense weight's result."""
    held = HELD[name]
    layout, mixed = Layout("mine", held.rules), [adapters(held)[i] for i in (1, 3)]

    def run(params: Any, x: Any) -> Any:
        w = params["w"] if held.sites == 1 else params["w"][:, 1]
        return jnp.einsum("...d,dnh->...nh", x, w)

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree(held))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8)), jnp.float32)
    close = partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    leaves = jaxmix.attach(params, mixed, layout=layout)
    expected = run(jaxmix.compose(params, mixed, layout=layout), x)
    close(jax.jit(jaxmix.factored(run, "factored"))(leaves, x), expected)
    bank = jaxmix.Bank({adapter.name: adapter for adapter in mixed}, params, layout=layout)
    who = ["DoRA", None, "OFT"]
    rows = bank(lambda p, x: run(p, x))(params, x[:, None], who)
    for i, adapter in enumerate(who):
        own_parts = [a for a in mixed if a.name == adapter]
        close(rows[i], run(jaxmix.compose(params, own_parts, layout=layout), x[i][None]))


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_to_lora_equals_the_mix(held: Held) -> None:
    """One LoRA of full rank is the mix, in PyTorch's axes and at PyTorch's scale."""
    layout, mixed = Layout("mine", held.rules), jaxmix.mix(*adapters(held)[1:4:2])
    with jax.enable_x64(True), uncompiled():
        params = jax.tree.map(jnp.asarray, tree(held))
        reduced = jaxmix.to_lora(mixed, params, layout=layout, rank=8)
        for i in range(held.sites):
            lora: Any = reduced.updates[f"a{i}"]
            delta = truth(held, list(mixed.parts), params, i) - matrix(held, params, i)
            same(lora.scale * np.asarray(lora.b @ lora.a), delta)


def test_scale_keeps_16_bit_numbers() -> None:
    """A scale adds no rounding: unchanged numbers stay equal bit for bit."""
    rule = Rule("a", "w", "d n (h two) -> (n two h) d", sizes=TWO, scale=SCALE)
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3, 6)), jnp.bfloat16)
    nothing = 0.0 * Adapter({"a": draw_update("DoRA", Module("linear", (18, 8)), 0)})
    out = jaxmix.compose({"w": leaf}, [nothing], layout=Layout("mine", (rule,)))["w"]
    assert out.dtype == leaf.dtype and bool((out == leaf).all())


def test_places_of_biases() -> None:
    """A bias may be scaled, interleaved, or one layer's of a stack."""
    rule = Rule(r"a(\d)", "b", "n (h two) -> (n two h)", r":, \1", "bias", TWO, 0.5)
    rng = np.random.default_rng(0)
    leaf, new = normal(rng, 3, 2, 4), normal(rng, 12)
    with jax.enable_x64(True):
        change = Adapter({"a1": jaxmix.families.Replace(bias=jnp.asarray(new))})
        out = jaxmix.compose({"b": jnp.asarray(leaf)}, [change], layout=Layout("mine", (rule,)))
    same(halves(np.asarray(out["b"])[:, 1]).reshape(-1), new / 2)
    assert (np.asarray(out["b"])[:, 0] == leaf[:, 0]).all()


def test_scanned_tree_compiles_once_for_all_layers() -> None:
    """One program serves all layers of a stack, and a further layer needs none."""
    params = {"w": jnp.zeros((8, 4, 3, 4), jnp.float32)}
    rule = Rule(r"a(\d)", "w", "d n h -> (n h) d", r":, \1")
    module = Module("linear", (12, 8))

    def programs(*layers: int) -> int:
        mixed = [Adapter({f"a{i}": draw_update("DoRA", module, i) for i in layers})]
        with timed_events() as events:
            jaxmix.compose(params, mixed, layout=Layout("mine", (rule,)))
        return events[COMPILED]

    assert programs(0, 1) > 0 and programs(1, 2, 3) == 0


@pytest.mark.parametrize(
    "more",
    [
        dict(sizes=2),
        dict(sizes=("two", 2)),
        dict(sizes=(("two", 0),)),
        dict(sizes=(("two", 2.0),)),
        dict(sizes=(("two", 2, 3),)),
        dict(sizes=((2, "two"),)),
        dict(scale=0),
        dict(scale=-1.0),
        dict(scale="h"),
        dict(scale=float("nan")),
        dict(scale=True),
        dict(scale=("h", 2)),
        dict(scale=(("h", float("inf")),)),
    ],
    ids=str,
)
def test_invalid_sizes_and_scales_are_refused(more: dict[str, Any]) -> None:
    fields = {"axes": None, "index": None, "part": "weight", "sizes": (), "scale": 1.0, **more}
    shown = "".join(f", {name}={value!r}" for name, value in fields.items())
    message = (
        f"Rule(site='a', leaf='w'{shown}) is not a rule, expected sizes such as (('two', 2),), and "
        "as its scale a positive number, or sizes of axes to powers such as (('h', -0.5),)."
    )
    with pytest.raises(LayoutError, match=full_text(message)):
        Rule("a", "w", **more)


def test_sizes_and_scales_that_do_not_fit() -> None:
    """The error has the leaf's shape."""
    lora = Adapter({"a": draw_update("LoRA", Module("linear", (12, 8)), 0)})
    params = {"w": jnp.zeros((8, 3, 4), jnp.float32)}
    for place, text in (
        (
            dict(sizes=(("two", 3),)),
            f"axes {ROTARY!r} of the layout's rule (Shape mismatch, can't divide axis of length 4 "
            "in chunks of 3)",
        ),
        (
            dict(sizes=TWO, scale=(("x", 1.0),)),
            "axis 'x' of the scale (('x', 1.0),) of the layout's rule (the pattern does not "
            "name it)",
        ),
    ):
        message = (
            "leaves that can't take an adapter, expected arrays of floats:\n"
            f"  a: w of shape (8, 3, 4) does not have the {text}. Fix the rule."
        )
        with pytest.raises(LayoutError, match=full_text(message)):
            rule = Rule("a", "w", ROTARY, **place)  # pyright: ignore[reportCallIssue]
            jaxmix.compose(params, [lora], layout=Layout("mine", (rule,)))
