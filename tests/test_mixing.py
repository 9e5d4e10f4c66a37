"""`mix` and `compose`: arguments, errors, and the representation of a mix."""

import inspect
import pydoc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace

from .laws.draws import ones, zeros
from .messages import full_text

PARAMS = {"q.weight": zeros((2, 3), np.float32), "q.bias": zeros(2, np.float32)}


def lora(name: str = "a", strength: Any = 1.0) -> Adapter:
    """Returns an adapter that adds 0.5 everywhere."""
    return Adapter({"q": LoRA(ones((1, 3)), ones((2, 1)), 0.5)}, strength, name)


def value(params: Any) -> float:
    """Returns the number in all elements of q."""
    return float(params["q.weight"][0, 0])


# ---------------------------------------------------------------- mixes


def test_nested_mixes_are_flattened() -> None:
    """The parts of nested mixes are joined in order, with their strengths."""
    a, b, c = lora("a"), lora("b", 2.0), lora("c")
    mixed = jaxmix.mix(a, 0.5 * jaxmix.mix(b, -c), strength=3)
    assert [(part.name, part.strength) for part in mixed.parts] == [
        ("a", 3.0),
        ("b", 3.0),
        ("c", -1.5),
    ]
    assert isinstance(mixed, Mix) and jaxmix.mix(mixed).parts == mixed.parts


def test_one_strength_per_argument() -> None:
    """A sequence or array has one strength per argument; a mix's applies to all its parts."""
    a, pair = lora("a"), jaxmix.mix(lora("b"), lora("c", 0.5))
    for strengths in ([2, 4], (2.0, 4.0), np.array([2.0, 4.0]), jnp.array([2.0, 4.0])):
        parts = jaxmix.mix(a, pair, strength=strengths).parts
        assert [float(part.strength) for part in parts] == [2.0, 4.0, 2.0]
    assert jaxmix.mix(strength=[]).parts == ()


def test_traced_strengths_per_argument() -> None:
    """A traced vector has one strength per argument too."""

    def run(strengths: Any) -> Any:
        return jaxmix.mix(lora("a"), lora("b"), strength=strengths)(PARAMS)["q.weight"]

    assert float(jax.jit(run)(jnp.array([1.0, 2.0]))[0, 0]) == 1.5


def test_default_strength_keeps_the_arrays() -> None:
    """The default multiplies nothing, so strengths stay the same objects."""
    strength = jnp.asarray(0.5)
    assert jaxmix.mix(lora(strength=strength)).parts[0].strength is strength


SCALAR = (
    "expected a real number or an array without axes. For one strength per adapter write "
    "mix(a, b, strength=[…])."
)


def length(found: int, expected: int) -> str:
    """The error for a list of strengths of another length."""
    return (
        f"mix got a list of strengths of length {found}, expected {expected}, one for each "
        "adapter, or a single number for all."
    )


@pytest.mark.parametrize(
    ("strength", "text"),
    [
        ([1.0], length(1, 2)),
        (ones(3), length(3, 2)),
        (ones((2, 2)), f"a strength is an array of shape (2, 2), {SCALAR}"),
        ([1.0, True], f"a strength is True, {SCALAR}"),
        ([1.0, [1.0]], f"a strength is an array of shape (1,), {SCALAR}"),
        ("ab", f"a strength is 'ab', {SCALAR}"),
        (float("inf"), "a strength is inf, expected a finite number."),
        ({"a": 1.0}, f"a strength is {{'a': 1.0}}, {SCALAR}"),
    ],
)
def test_invalid_strengths_are_refused(strength: Any, text: str) -> None:
    """Too many, too few, or non-numeric strengths are refused."""
    with pytest.raises(AdapterError, match=full_text(text)):
        jaxmix.mix(lora("a"), lora("b"), strength=strength)


IN_PLACE = "Read one with jaxmix.load, and write"
READ = "Read one with jaxmix.load(path)."


@pytest.mark.parametrize(
    ("value", "shown", "remedy"),
    [
        ([lora()], "list [a: LoRA rank 1 at 1 site, strength 1 (q)]", ""),
        ("folder", "str 'folder'", READ),
        (None, "NoneType None", ""),
        (Adapter, "ABCMeta <class 'jaxmix.adapter.Adapter'>", ""),
        (
            LoRA(ones((1, 3)), ones((2, 1)), 1.0),
            "LoRA LoRA(a=array([[1., 1., 1.]]), b=array([[1.], [1.]]), scal…",
            "Name the module that it updates: jaxmix.Adapter({site: update}).",
        ),
        (PARAMS, "dict {'q.weight': array([[0., 0., 0.], [0., 0., 0.]], dtype=fl…", ""),
    ],
)
def test_values_that_are_not_adapters_are_refused(value: Any, shown: str, remedy: str) -> None:
    """The error shows the value, shortened, and the correct call."""
    for call, found, example in (
        (
            lambda: jaxmix.mix(lora(), value),
            f"mix got {shown}, expected adapters and mixes.",
            "mix(a, b), not mix([a, b]).",
        ),
        (
            lambda: jaxmix.compose(PARAMS, [value]),
            f"compose got for its adapters:\n  0: {shown}\n"
            "Expected an adapter, a mix, or a list of them.",
            "compose(params, [a, b]).",
        ),
    ):
        message = f"{found} {remedy or f'{IN_PLACE} {example}'}"
        with pytest.raises(AdapterError, match=full_text(message)):
            call()
        assert len(message) < 250


def test_duplicate_names_are_refused() -> None:
    """Duplicates are refused, also in nested mixes; renaming resolves them."""
    a, b = lora("a"), lora("b")
    for call in (
        lambda: jaxmix.mix(a, b, a),
        lambda: jaxmix.mix(jaxmix.mix(a, b), 0.5 * a),
        lambda: jaxmix.compose(PARAMS, [a, a]),
    ):
        with pytest.raises(
            AdapterError,
            match=full_text(
                "two adapters of a mix have the name 'a'. Give each its own: "
                "jaxmix.load(…, name='other') or adapter.renamed('other')."
            ),
        ):
            call()
    with pytest.raises(
        AdapterError,
        match=full_text(
            "two adapters of a mix have the name 'a', 'b'. Give each its "
            "own: jaxmix.load(…, name='other') or "
            "adapter.renamed('other')."
        ),
    ):
        jaxmix.mix(a, b, b, a)
    assert value(jaxmix.compose(PARAMS, [a, a.renamed("again")])) == 1.0


# ---------------------------------------------------------------- compose


def test_compose_takes_one_or_several_adapters() -> None:
    """`compose` takes an adapter, a mix, a list, a tuple or a generator."""
    a, b = lora("a"), lora("b")
    assert value(jaxmix.compose(PARAMS, a)) == 0.5
    for several in ([a, b], (a, b), (x for x in (a, b)), jaxmix.mix(a, b), [jaxmix.mix(a), b]):
        assert value(jaxmix.compose(PARAMS, several)) == 1.0
    assert value(a(PARAMS)) == 0.5 and value(jaxmix.mix(a, b)(PARAMS)) == 1.0


@pytest.mark.parametrize("adapters", [[], (), jaxmix.mix(), iter(())], ids="abcd")
def test_compose_without_adapters_returns_params(adapters: Any) -> None:
    """Without adapters the result is `params` itself, of any type."""
    for params in (PARAMS, {}, None, 3, object()):
        assert jaxmix.compose(params, adapters) is params


@pytest.mark.parametrize("value", [None, 0.5, "folder", {"a": lora()}, b"x"], ids=repr)
def test_arguments_that_are_not_adapters_are_refused(value: Any) -> None:
    """Values that can't be a list of adapters are refused."""
    shown = f"{type(value).__name__} {value!r}"
    remedy = READ if isinstance(value, str | bytes) else f"{IN_PLACE} compose(params, [a, b])."
    with pytest.raises(
        AdapterError,
        match=full_text(
            f"compose got {shown} for its adapters, expected an adapter, a mix, or a list of them. "
            f"{remedy}"
        ),
    ):
        jaxmix.compose(PARAMS, value)


def test_arguments_are_not_changed() -> None:
    """Neither the tree nor its arrays change."""
    params = {name: leaf.copy() for name, leaf in PARAMS.items()}
    adapter = Adapter({"q": Replace(ones((2, 3)), ones(2))})
    before = repr(adapter)
    out = jaxmix.compose(params, [adapter])
    assert list(params) == list(PARAMS) and all((params[k] == PARAMS[k]).all() for k in PARAMS)
    assert out is not params and repr(adapter) == before and value(out) == 1.0


# ---------------------------------------------------------------- representation and help


def test_repr() -> None:
    """The representation has one line per part, in order of application."""
    mixed = jaxmix.mix(lora("french"), 0.6 * lora("formal"))
    assert repr(mixed) == (
        "mix of 2 adapters, applied in this order:\n"
        "  1. french: LoRA rank 1 at 1 site, strength 1 (q)\n"
        "  2. formal: LoRA rank 1 at 1 site, strength 0.6 (q)"
    )
    assert repr(jaxmix.mix(lora())).startswith("mix of 1 adapter, applied in this order:\n  1. a: ")
    assert repr(jaxmix.mix()) == "mix of nothing: the identity"


@pytest.mark.parametrize("name", ["mix", "compose", "Adapter", "Mix", "Layout", "Rule"])
def test_help_is_complete(name: str) -> None:
    """`help()` shows arguments, result, errors and an example, in short lines."""
    text = pydoc.plain(pydoc.render_doc(getattr(jaxmix, name)))
    for section in ("Args:", "Raises:", "Example:", "Source:"):
        assert section in text, section
    doc = inspect.getdoc(getattr(jaxmix, name)) or ""
    assert max(map(len, doc.splitlines())) <= 100


@pytest.mark.parametrize("strength", [None, [None], [[1.0], [1.0, 2.0]], "1"])
def test_invalid_strengths_of_a_mix_are_refused(strength: Any) -> None:
    """Refused also for a mix's own strength, and where NumPy itself would fail."""
    (first, *rest) = strength if isinstance(strength, list) else [strength]
    message = length(2, 1) if rest else f"a strength is {first!r}, {SCALAR}"
    with pytest.raises(AdapterError, match=full_text(message)):
        jaxmix.mix(Adapter({}, name="a"), strength=strength)
    if strength != [None]:
        message = full_text(f"a strength is {strength!r}, {SCALAR}")
        with pytest.raises(AdapterError, match=message):
            _ = Adapter({}, name="a") * strength
