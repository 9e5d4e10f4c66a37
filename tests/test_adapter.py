"""Adapters: strengths, names, how they read, and what they are as pytrees."""

import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmix import Adapter, JaxmixError, mix
from jaxmix.errors import AdapterError
from jaxmix.families import LoRA, Replace

from .laws.draws import FAMILIES, KINDS, made, ones


def lora(name: str = "style", sites: int = 1, strength: Any = 1.0) -> Adapter:
    """A LoRA of rank 2 at some sites, (2, 3) each."""
    updates = {
        f"model.layers.{i}.q": LoRA(a=ones((2, 3)), b=ones((2, 2)), scale=0.5) for i in range(sites)
    }
    return Adapter(updates, strength, name)


# ---------------------------------------------------------------- strengths

SCALARS = {
    "float": 0.5,
    "int": 2,
    "numpy float64": np.float64(0.5),
    "numpy float32": np.float32(0.5),
    "numpy int": np.int64(3),
    "numpy without axes": np.array(0.5),
    "jax float": jnp.asarray(0.5),
    "jax bfloat16": jnp.asarray(0.5, jnp.bfloat16),
    "jax int": jnp.asarray(2),
}


@pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)
def test_a_scalar_on_either_side(scalar: Any) -> None:
    """Whatever kind of number it is, it multiplies, and NumPy and JAX leave it to us."""
    for made_of in (scalar * lora(), lora() * scalar):
        assert isinstance(made_of, Adapter) and made_of.name == "style"
        assert float(made_of.strength) == float(scalar)
    twice = scalar * (scalar * lora())
    assert float(twice.strength) == float(scalar) ** 2
    mixed = scalar * mix(lora("a"), 2 * lora("b"))
    assert [float(part.strength) for part in mixed.parts] == [float(scalar), 2 * float(scalar)]


def test_minus() -> None:
    """``-a`` takes a away."""
    assert (-lora()).strength == -1.0 and (-(0.5 * lora())).strength == -0.5
    assert [part.strength for part in (-mix(lora("a"), lora("b"))).parts] == [-1.0, -1.0]


def test_a_number_stays_a_float_and_an_array_an_array() -> None:
    """NumPy's scalars become floats, so that they trace like them; JAX's arrays stay."""
    assert type((np.float32(0.5) * lora()).strength) is float
    assert type((3 * lora()).strength) is float
    array = jnp.asarray(0.5)
    assert isinstance((array * lora()).strength, jax.Array)
    assert lora(strength=array).strength is array


def test_a_traced_strength() -> None:
    """A tracer is a strength, of whole numbers too."""
    for value in (0.25, 2):
        got = jax.jit(lambda s: (s * (0.5 * lora())).strength)(value)
        assert float(got) == 0.5 * value and jnp.issubdtype(got.dtype, jnp.floating)


REFUSED = {
    "bool": (True, "a strength is True, expected a real number"),
    "numpy bool": (np.bool_(True), "a strength is "),
    "jax bool": (jnp.asarray(True), "a strength is "),
    "complex": (1j, r"a strength is 1j, expected a real number"),
    "text": ("0.5", r"a strength is '0.5', expected a real number"),
    "none": (None, "a strength is None, expected a real number"),
    "a list": (
        [1.0, 2.0],
        r"a strength is an array of shape \(2,\), .* mix\(a, b, strength=\[…\]\)",
    ),
    "a vector": (ones(2), r"a strength is an array of shape \(2,\)"),
    "a matrix": (jnp.ones((1, 1)), r"a strength is an array of shape \(1, 1\)"),
    "NaN": (float("nan"), "a strength is nan, expected a finite number"),
    "infinity": (np.inf, "a strength is inf, expected a finite number"),
    "jax NaN": (jnp.asarray(jnp.nan), "a strength is .*nan.*, expected a finite number"),
    "a key": (jax.random.key(0), "a strength is "),
    "an adapter": (lora(), "a strength is style: LoRA rank 2 at 1 site"),
}


@pytest.mark.parametrize(("strength", "text"), REFUSED.values(), ids=REFUSED)
def test_no_scalar(strength: Any, text: str) -> None:
    """What is no real scalar is refused wherever a strength goes in."""
    for try_it in (
        lambda: lora() * strength,
        lambda: lora(strength=strength),
        lambda: mix(lora("a")) * strength,
    ):
        with pytest.raises(AdapterError, match=text):
            try_it()


def test_division_and_sums_are_not_there() -> None:
    """What could be misread is no operation: only a product with a number is."""
    a: Any = lora()
    for try_it in (lambda: a + a, lambda: a @ a, lambda: 1 / a, lambda: ones(2) @ a):
        with pytest.raises(TypeError):
            try_it()


# ---------------------------------------------------------------- what goes in


def test_what_is_no_update() -> None:
    """All of it at once, by site."""
    wrong: Any = {"q": ones((2, 3)), "k": LoRA(ones((1, 3)), ones((2, 1)), 1.0), 3: None}
    with pytest.raises(AdapterError, match="not updates of a family") as caught:
        Adapter(wrong)
    assert "\n  q: ndarray" in str(caught.value) and "\n  3: NoneType" in str(caught.value)
    assert "k:" not in str(caught.value)


def test_what_is_no_mapping() -> None:
    """A list of updates has no sites."""
    wrong: Any = [LoRA(ones((1, 3)), ones((2, 1)), 1.0)]
    with pytest.raises(AdapterError, match=r"updates are a list, expected \{site: update\}"):
        Adapter(wrong)


def test_what_is_no_name() -> None:
    """A name is a text."""
    wrong: Any = 3
    for try_it in (lambda: Adapter({}, name=wrong), lambda: lora().renamed(wrong)):
        with pytest.raises(AdapterError, match=r"name is 3, expected a string"):
            try_it()
    with pytest.raises(AdapterError, match=r"source is 3, expected a string"):
        Adapter({}, source=wrong)


def test_the_source_is_kept_and_counts_for_nothing() -> None:
    """Through `*`, another name, and JAX; structures with others are equal."""
    sourced = replace(lora(), source="owner/name")
    left, right = jax.tree.structure(sourced), jax.tree.structure(lora())
    assert left == right and hash(left) == hash(right)
    kept = jax.tree.map(lambda x: x, 0.5 * sourced.renamed("x"))
    assert (kept.name, kept.source) == ("x", "owner/name")


def test_errors_are_value_errors() -> None:
    """So that code which does not know jaxmix catches them."""
    assert issubclass(AdapterError, JaxmixError) and issubclass(JaxmixError, ValueError)


def test_it_does_not_share_its_dict() -> None:
    """Later changes of the dict do not change the adapter."""
    updates: dict[str, Any] = {"q": Replace(ones((2, 3)))}
    adapter = Adapter(updates)
    updates.clear()
    assert adapter.sites == ("q",)


# ---------------------------------------------------------------- for people


def test_repr() -> None:
    """Name, kinds and sizes, sites, strength."""
    assert repr(lora()) == "style: LoRA rank 2 at 1 site, strength 1 (model.layers.0.q)"
    assert repr(0.6 * lora(sites=3)) == (
        "style: LoRA rank 2 at 3 sites, strength 0.6 (model.layers.0.q, …)"
    )
    assert repr(Adapter({}, name="empty")) == "empty: nothing at 0 sites, strength 1"
    third = jnp.asarray(1 / 3)
    assert "strength 0.3333 (" in repr(third * lora())


def test_repr_of_many_kinds() -> None:
    """The two most frequent are named."""
    module = KINDS["wide"]
    updates = {f"{f}.{i}": made(f, module, i) for f in FAMILIES for i in range(2)}
    updates |= {f"{i}.bias": Replace(bias=ones(6)) for i in range(5)}
    text = repr(Adapter(updates, name="all"))
    assert text.startswith("all: Replace bias, ") and " … at 17 sites" in text and len(text) < 100


def test_repr_of_a_traced_strength() -> None:
    """It says so, and does not fail."""
    seen: list[str] = []

    def show(strength: Any) -> Any:
        seen.append(repr(strength * lora()) + repr(mix(lora("b"), strength * lora())))
        return strength

    jax.jit(show)(0.5)
    assert seen[0].count("strength traced") == 2


def test_repr_never_fails() -> None:
    """JAX puts other things where arrays were; a debugger shows them."""
    adapter = lora(sites=2)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), adapter)
    assert "strength one of an array (2,)" in repr(stacked)
    odds = (lambda x: None, lambda x: "x", lambda x: np.asarray(x).dtype, jax.typeof)
    for odd in odds:
        assert repr(jax.tree.map(odd, adapter)).startswith("style: LoRA")


def test_names() -> None:
    """A new name, the rest the same objects."""
    first = lora()
    second = first.renamed("other")
    assert (first.name, second.name) == ("style", "other")
    assert second.updates["model.layers.0.q"] is first.updates["model.layers.0.q"]
    assert (0.5 * second).name == "other"


def test_frozen() -> None:
    """No field can be set."""
    adapter: Any = lora()
    with pytest.raises(AttributeError):
        adapter.strength = 2.0
    with pytest.raises(AttributeError):
        mix(adapter).parts = ()  # pyright: ignore[reportAttributeAccessIssue]


# ---------------------------------------------------------------- as pytrees


def test_tree_map_keeps_names_and_static_data() -> None:
    """Names, sites and configs come through, numbers change."""
    module = KINDS["wide"]
    mixed = mix(*(Adapter({"q": made(f, module, 1)}, 0.5, f) for f in FAMILIES))
    doubled = jax.tree.map(lambda x: 2 * x, mixed)
    assert [part.name for part in doubled.parts] == list(FAMILIES)
    assert [part.strength for part in doubled.parts] == [1.0] * 6
    assert jax.tree.structure(doubled) == jax.tree.structure(mixed)
    again = jax.tree.unflatten(jax.tree.structure(mixed), jax.tree.leaves(mixed))
    assert repr(again) == repr(mixed)


def test_paths_of_leaves_are_readable() -> None:
    """What optax and checkpoints name leaves by."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(lora())]
    assert paths == [
        ".updates['model.layers.0.q'].a",
        ".updates['model.layers.0.q'].b",
        ".updates['model.layers.0.q'].scale",
        ".strength",
    ]


def test_a_name_is_no_structure() -> None:
    """Adapters that differ in name only are one program for jit."""
    assert jax.tree.structure(lora("a")) == jax.tree.structure(lora("b"))
    assert hash(jax.tree.structure(lora("a"))) == hash(jax.tree.structure(lora("b")))
    assert jax.tree.structure(lora("a")) != jax.tree.structure(lora("a", sites=2))


def test_through_jit() -> None:
    """An adapter goes in and comes out."""
    out = jax.jit(lambda a: 0.5 * a)(lora())
    assert isinstance(out, Adapter) and float(out.strength) == 0.5
    assert re.match("style: LoRA rank 2 at 1 site, strength 0.5", repr(out))
