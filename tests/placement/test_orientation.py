"""The orientation of square weights: how it is determined, and the error if it is unknown."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.typing import ArrayLike

import jaxmix
from jaxmix import Adapter, Layout
from jaxmix.effects import effects
from jaxmix.errors import AdapterError, LayoutError
from jaxmix.families import LoRA, Normed, Together
from jaxmix.placement.orientation import OutAxes

from ..laws.draws import normal
from ..messages import full_text

Flat = dict[str, Any]


def lora(seed: int, transposed: bool | None = None, size: tuple[int, int] = (6, 6)) -> LoRA:
    """Returns a LoRA as read from a file with this ``fan_in_fan_out``."""
    rng, (rows, cols) = np.random.default_rng(seed), size
    return LoRA(normal(rng, 2, cols), normal(rng, rows, 2), 0.5, transposed=transposed)


def leaves(**shapes: tuple[int, ...]) -> Flat:
    """Returns a tree of these shapes; two underscores in a name stand for a dot."""
    rng = np.random.default_rng(0)
    return {name.replace("__", "."): normal(rng, *shape) for name, shape in shapes.items()}


def is_conv1d(params: Flat, site: str, update: LoRA, **options: Any) -> bool:
    """Whether the update was applied transposed. Asserts that it was applied in one way."""
    with jax.enable_x64(True):
        out = jaxmix.compose(params, Adapter({site: update}), **options)
    change = np.asarray(out[f"{site}.weight"]) - params[f"{site}.weight"]
    delta = 0.5 * np.asarray(update.b) @ np.asarray(update.a)
    is_transposed, is_stored = (
        change.shape == d.shape and np.allclose(change, d, atol=1e-12) for d in (delta.T, delta)
    )
    assert is_transposed != is_stored
    return is_transposed


BLOCK = {"h__0__c_attn__weight": (6, 18), "h__0__c_attn__bias": (18,)}
LINEAR = {"h__0__up__weight": (18, 6), "h__0__up__bias": (18,)}


def site(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a square weight and its bias."""
    return {f"{name}__weight": (6, 6), f"{name}__bias": (6,)}


# The tree's shapes, the site, the adapter's flag, and whether the site is a Conv1D.
CASES: dict[str, tuple[dict[str, tuple[int, ...]], str, bool | None, bool]] = {
    "no bias": ({"q__weight": (6, 6)}, "q", None, False),
    "a Conv1D's name in a block of Conv1D": (
        {**BLOCK, **site("h__1__c_proj")}, "h.1.c_proj", None, True),
    "the same, the flag off": ({**BLOCK, **site("h__1__c_proj")}, "h.1.c_proj", False, True),
    "another name beside Conv1D": ({**BLOCK, **site("h__0__q")}, "h.0.q", None, False),
    "another block's": ({**BLOCK, **site("encoder__0__q")}, "encoder.0.q", None, False),
    "a block of linear layers": ({**LINEAR, **site("h__1__q")}, "h.1.q", None, False),
    "a Conv1D's name in a linear block": (
        {**LINEAR, **site("h__0__c_proj")}, "h.0.c_proj", None, False),
    "namesakes": (
        {**LINEAR, **site("a__q"), "b__q__weight": (6, 4), "b__q__bias": (4,)}, "a.q", None, True),
    "numbers are not namesakes": (
        {**LINEAR, **site("h__0__to__0"), "b__0__weight": (6, 4), "b__0__bias": (4,)},
        "h.0.to.0", None, False),
    "a flag that is off": (site("q"), "q", False, False),
    "a flag that is on": (site("q"), "q", True, True),
}  # fmt: skip


@pytest.mark.parametrize(("shapes", "at", "flag", "expected"), CASES.values(), ids=CASES)
def test_what_determines_the_orientation(
    shapes: dict[str, tuple[int, ...]], at: str, flag: bool | None, expected: bool
) -> None:
    assert is_conv1d(leaves(**shapes), at, lora(1, flag)) == expected


@pytest.mark.parametrize("size", [(4, 6), (6, 4)])
def test_non_square_factors_decide(size: tuple[int, int]) -> None:
    """Non-square factors determine the orientation if the bias does not."""
    params = leaves(c_proj__weight=(6, 4), c_proj__bias=(1,))
    assert is_conv1d(params, "c_proj", lora(1, None, size)) == (size == (4, 6))


def test_unknown_orientation_is_an_error() -> None:
    """All sites of unknown orientation are listed, with the option that states it."""
    params = leaves(**site("a"), **site("b"), **site("c"), head__weight=(9, 6), head__bias=(9,))
    updates = {"a": lora(1), "b": lora(2, False), "c": lora(3)}
    with jax.enable_x64(True), pytest.raises(LayoutError) as caught:
        jaxmix.compose(params, Adapter(updates))
    assert str(caught.value) == (
        "weights whose orientation is unknown:\n  a: a.weight (6, 6)\n  c: c.weight (6, 6)\n"
        "PyTorch stores them as (out, in) if they are torch.nn.Linear, as (in, out) if they are "
        "transformers' Conv1D; config.json, the shapes and the biases do not show which. The "
        "adapter's fan_in_fan_out = true is that of the last layer that PEFT wrapped, and may be "
        "wrong for others. State which modules are Conv1D by a regular expression, '' for none: "
        r"layout=jaxmix.Layout('mine', conv1d=r'.*\.c_proj')."
    )


def transposes(params: Flat, x: Any) -> Flat:
    """Multiplies by each weight, so the identity matrix gives the weights' transposes."""
    return {f"{name}.weight": x @ params[f"{name}.weight"].T for name in "ab"}


def weights(method: str, params: Flat, adapter: Adapter, layout: Layout | None) -> Flat:
    """Returns the weights that each method of running an adapter computes with."""
    eye = np.eye(6)
    match method:
        case "compose":
            return jaxmix.compose(params, adapter, layout=layout)
        case "attach":
            out = jaxmix.factored(transposes)(jaxmix.attach(params, adapter, layout=layout), eye)
            return {name: leaf.T for name, leaf in out.items()}
        case "Bank":
            bank = jaxmix.Bank({"one": adapter}, params, layout=layout)
            out = bank(transposes)(params, eye[None], ["one"])
            return {name: leaf[0].T for name, leaf in out.items()}
        case "to_lora":
            result = jaxmix.to_lora(adapter, params, rank=2, layout=layout)
            assert [result.updates[site].transposed for site in "ab"] == [False, True]
            return jaxmix.compose(params, result)
        case _:
            (_, (a,)), (_, (b,)) = effects([adapter], params, layout)
            assert a.weight is not None and b.weight is not None
            deltas = {"a.weight": a.weight.dense(), "b.weight": b.weight.dense().T}
            return {name: params[name] + delta for name, delta in deltas.items()}


@pytest.mark.parametrize("method", ["compose", "attach", "Bank", "to_lora", "effects"])
def test_all_functions_take_the_layout(method: str) -> None:
    """Each function uses the layout, and refuses the adapter without it."""
    params, adapter = leaves(**site("a"), **site("b")), Adapter({"a": lora(1), "b": lora(2)})
    with jax.enable_x64(True):
        with pytest.raises(
            LayoutError,
            match=full_text(
                "weights whose orientation is unknown:\n"
                "  a: a.weight (6, 6)\n"
                "  b: b.weight (6, 6)\n"
                "PyTorch stores them as (out, in) if they are "
                "torch.nn.Linear, as (in, out) if they are transformers' "
                "Conv1D; config.json, the shapes and the biases do not show "
                "which. The adapter's fan_in_fan_out = true is that of the "
                "last layer that PEFT wrapped, and may be wrong for others. "
                "State which modules are Conv1D by a regular expression, '' "
                "for none: layout=jaxmix.Layout('mine', "
                "conv1d=r'.*\\.c_proj')."
            ),
        ):
            weights(method, params, adapter, None)
        actual = weights(method, params, adapter, Layout("mine", conv1d="b"))
    for name, is_transposed in (("a", False), ("b", True)):
        update: Any = adapter.updates[name]
        delta = 0.5 * update.b @ update.a
        expected = params[f"{name}.weight"] + (delta.T if is_transposed else delta)
        np.testing.assert_allclose(actual[f"{name}.weight"], expected, rtol=1e-10, atol=1e-10)


def test_init_takes_the_layout() -> None:
    """`init` creates factors for the orientation that the layout states."""
    params, key = leaves(**site("a"), **site("b")), jax.random.key(0)
    layout = Layout("mine", conv1d="b")
    adapter = jaxmix.init("lora", params, key, target_modules=["a", "b"], rank=2, layout=layout)
    assert [adapter.updates[name].transposed for name in "ab"] == [False, True]


def test_invalid_conv1d_pattern() -> None:
    with pytest.raises(LayoutError) as caught:
        Layout("mine", conv1d="(")
    assert str(caught.value).startswith(
        "the layout 'mine': conv1d '(' is not a regular expression: missing ), unterminated"
    )
    with pytest.raises(
        LayoutError,
        match=full_text(
            "the layout 'mine': conv1d 3 is not a regular expression: "
            "object of type 'int' has no len(). Write the PyTorch module "
            "name with its dots escaped, such as "
            "layers\\.(\\d+)\\.q_proj."
        ),
    ):
        Layout("mine", conv1d=3)  # pyright: ignore[reportArgumentType]


def test_layout_without_rules_uses_names() -> None:
    layout = Layout("mine", conv1d="")
    assert layout.by_name and layout.places("q", "bias")[0].leaf == "q.bias"
    assert hash(layout) != hash(Layout("mine"))


def test_flags_of_several_updates() -> None:
    """One update with a true flag decides; an update without a flag makes the rest unknown."""
    unknown, off, on = lora(1), lora(1, False), lora(1, True)
    for parts, flag in (((off, unknown), None), ((unknown, on), True), ((off, off), False)):
        assert Together(parts).transposed is flag
    magnitude: ArrayLike = np.ones(6)
    assert Normed(unknown, magnitude).transposed is None
    combined = jaxmix.combine([Adapter({"a": unknown}), Adapter({"a": off})], method="linear")
    assert combined.updates["a"].transposed is None


def test_a_dense_update_of_an_unknown_orientation() -> None:
    """A square dense update needs the base; a non-square one fits one orientation only."""
    square = [Adapter({"a": lora(i)}, name=f"{i}") for i in range(2)]
    with pytest.raises(AdapterError) as caught:
        jaxmix.combine(square, method="model_stock")
    assert str(caught.value) == (
        "a: the file that the adapter was read from does not record whether PyTorch stores this "
        "weight (6, 6) as (out, in) or as (in, out), on which a dense update depends. Pass the "
        "base: params=…."
    )
    wide = [Adapter({"h.c_proj": lora(i, None, (4, 6))}) for i in range(2)]
    combined: Any = jaxmix.combine(wide, method="model_stock").updates["h.c_proj"]
    assert combined.weight.shape == (6, 4)


def test_blocks() -> None:
    """Only other leaves of the same numbered block determine a block's orientation."""
    axes = OutAxes({"head.weight": (9, 6), "head.bias": (9,), "q.weight": (6, 6), "q.bias": (6,)})
    assert axes.of("head.weight") == 0 and axes.of("q.weight") is None
    assert axes.of_block("q.weight") is None and not axes.is_linear("q.weight")
