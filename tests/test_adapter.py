"""Adapters: strengths, arguments, representation, and behavior as pytrees."""

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

from .laws.draws import FAMILIES, KINDS, draw_update, ones
from .messages import full_text


def lora(name: str = "style", sites: int = 1, strength: Any = 1.0) -> Adapter:
    """Returns a LoRA of rank 2 at some sites with weights (2, 3)."""
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
def test_scalars_multiply_from_either_side(scalar: Any) -> None:
    """Scalars of Python, NumPy and JAX multiply an adapter or a mix from either side."""
    for product in (scalar * lora(), lora() * scalar):
        assert isinstance(product, Adapter) and product.name == "style"
        assert float(product.strength) == float(scalar)
    twice = scalar * (scalar * lora())
    assert float(twice.strength) == float(scalar) ** 2
    mixed = scalar * mix(lora("a"), 2 * lora("b"))
    assert [float(part.strength) for part in mixed.parts] == [float(scalar), 2 * float(scalar)]


def test_negation_negates_the_strength() -> None:
    """``-a`` has the negative strength; a negated mix negates each part."""
    assert (-lora()).strength == -1.0 and (-(0.5 * lora())).strength == -0.5
    assert [part.strength for part in (-mix(lora("a"), lora("b"))).parts] == [-1.0, -1.0]


def test_scalars_become_floats_and_jax_arrays_stay() -> None:
    """NumPy's scalars become floats, so they trace like floats; JAX's arrays are kept."""
    assert type((np.float32(0.5) * lora()).strength) is float
    assert type((3 * lora()).strength) is float
    array = jnp.asarray(0.5)
    assert isinstance((array * lora()).strength, jax.Array)
    assert lora(strength=array).strength is array


def test_strength_may_be_traced() -> None:
    """A tracer is a valid strength, also of an integer."""
    for value in (0.25, 2):
        product = jax.jit(lambda s: (s * (0.5 * lora())).strength)(value)
        assert float(product) == 0.5 * value and jnp.issubdtype(product.dtype, jnp.floating)


SCALAR = (
    "expected a real number or an array without axes. For one strength per adapter write "
    "mix(a, b, strength=[…])."
)
FINITE = "expected a finite number."
REFUSED = {
    "bool": (True, "True", SCALAR),
    "numpy bool": (np.bool_(True), repr(np.bool_(True)), SCALAR),
    "jax bool": (jnp.asarray(True), "Array(True, dtype=bool)", SCALAR),
    "complex": (1j, "1j", SCALAR),
    "text": ("0.5", "'0.5'", SCALAR),
    "none": (None, "None", SCALAR),
    "a list": ([1.0, 2.0], "an array of shape (2,)", SCALAR),
    "a vector": (ones(2), "an array of shape (2,)", SCALAR),
    "a matrix": (jnp.ones((1, 1)), "an array of shape (1, 1)", SCALAR),
    "NaN": (float("nan"), "nan", FINITE),
    "infinity": (np.inf, "inf", FINITE),
    "jax NaN": (jnp.asarray(jnp.nan), repr(jnp.asarray(jnp.nan)), FINITE),
    "a key": (jax.random.key(0), repr(jax.random.key(0)), SCALAR),
    "an adapter": (
        lora(),
        "style: LoRA rank 2 at 1 site, strength 1 (model.layers.0.q)",
        SCALAR,
    ),
}


@pytest.mark.parametrize(("strength", "shown", "expected"), REFUSED.values(), ids=REFUSED)
def test_invalid_strengths_are_refused(strength: Any, shown: str, expected: str) -> None:
    """Every function that takes a strength refuses values that are not finite real scalars."""
    for call in (
        lambda: lora() * strength,
        lambda: lora(strength=strength),
        lambda: mix(lora("a")) * strength,
    ):
        with pytest.raises(AdapterError, match=full_text(f"a strength is {shown}, {expected}")):
            call()


def test_division_and_sums_are_unsupported() -> None:
    """Operations with an ambiguous meaning raise TypeError."""
    a: Any = lora()
    for call in (lambda: a + a, lambda: a @ a, lambda: 1 / a, lambda: ones(2) @ a):
        with pytest.raises(TypeError):
            call()


# ---------------------------------------------------------------- arguments


def test_values_that_are_not_updates_are_listed() -> None:
    """All invalid updates are listed by site in one error."""
    updates: Any = {"q": ones((2, 3)), "k": LoRA(ones((1, 3)), ones((2, 1)), 1.0), 3: None}
    with pytest.raises(
        AdapterError,
        match=full_text(
            "an adapter has values that are not updates of a family "
            "(jaxmix.families), or keys that are not names of sites:\n"
            "  q: ndarray\n"
            "  3: NoneType"
        ),
    ) as caught:
        Adapter(updates)
    assert "\n  q: ndarray" in str(caught.value) and "\n  3: NoneType" in str(caught.value)
    assert "k:" not in str(caught.value)


def test_updates_must_be_a_mapping() -> None:
    """A list of updates has no sites and is refused."""
    updates: Any = [LoRA(ones((1, 3)), ones((2, 1)), 1.0)]
    with pytest.raises(
        AdapterError,
        match=full_text(
            "an adapter's updates are a list, expected {site: update}, "
            "with PyTorch module names as sites."
        ),
    ):
        Adapter(updates)


def test_name_and_source_must_be_strings() -> None:
    """A name or source that is not a string is refused."""
    value: Any = 3
    for call in (lambda: Adapter({}, name=value), lambda: lora().renamed(value)):
        with pytest.raises(
            AdapterError, match=full_text("an adapter's name is 3, expected a string.")
        ):
            call()
    with pytest.raises(
        AdapterError, match=full_text("an adapter's source is 3, expected a string.")
    ):
        Adapter({}, source=value)


def test_source_is_kept_and_ignored_in_comparisons() -> None:
    """Products, renaming and JAX keep the source, which does not affect the tree structure."""
    sourced = replace(lora(), source="owner/name")
    left, right = jax.tree.structure(sourced), jax.tree.structure(lora())
    assert left == right and hash(left) == hash(right)
    adapter = jax.tree.map(lambda x: x, 0.5 * sourced.renamed("x"))
    assert (adapter.name, adapter.source) == ("x", "owner/name")


def test_errors_are_value_errors() -> None:
    """Code that does not know jaxmix can catch its errors as ValueError."""
    assert issubclass(AdapterError, JaxmixError) and issubclass(JaxmixError, ValueError)


def test_updates_are_copied() -> None:
    """Later changes of the caller's dict do not change the adapter."""
    updates: dict[str, Any] = {"q": Replace(ones((2, 3)))}
    adapter = Adapter(updates)
    updates.clear()
    assert adapter.sites == ("q",)


# ---------------------------------------------------------------- representation


def test_repr() -> None:
    """The representation has the name, the kinds with their sizes, the sites and the strength."""
    assert repr(lora()) == "style: LoRA rank 2 at 1 site, strength 1 (model.layers.0.q)"
    assert repr(0.6 * lora(sites=3)) == (
        "style: LoRA rank 2 at 3 sites, strength 0.6 (model.layers.0.q, …)"
    )
    assert repr(Adapter({}, name="empty")) == "empty: nothing at 0 sites, strength 1"
    third = jnp.asarray(1 / 3)
    assert "strength 0.3333 (" in repr(third * lora())


def test_repr_of_many_kinds() -> None:
    """The representation names the two most frequent kinds."""
    module = KINDS["wide"]
    updates = {f"{f}.{i}": draw_update(f, module, i) for f in FAMILIES for i in range(2)}
    updates |= {f"{i}.bias": Replace(bias=ones(6)) for i in range(5)}
    text = repr(Adapter(updates, name="all"))
    assert text.startswith("all: Replace bias, ") and " … at 17 sites" in text and len(text) < 100


def test_repr_of_a_traced_strength() -> None:
    """A traced strength is shown as traced."""
    representations: list[str] = []

    def show(strength: Any) -> Any:
        representations.append(repr(strength * lora()) + repr(mix(lora("b"), strength * lora())))
        return strength

    jax.jit(show)(0.5)
    assert representations[0].count("strength traced") == 2


def test_repr_never_fails() -> None:
    """The representation works for any objects that replace arrays in JAX or a debugger."""
    adapter = lora(sites=2)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), adapter)
    assert "strength one of an array (2,)" in repr(stacked)
    replacements = (lambda x: None, lambda x: "x", lambda x: np.asarray(x).dtype, jax.typeof)
    for replacement in replacements:
        assert repr(jax.tree.map(replacement, adapter)).startswith("style: LoRA")


def test_renaming_keeps_the_updates() -> None:
    """A renamed adapter has the same update objects."""
    first = lora()
    second = first.renamed("other")
    assert (first.name, second.name) == ("style", "other")
    assert second.updates["model.layers.0.q"] is first.updates["model.layers.0.q"]
    assert (0.5 * second).name == "other"


def test_frozen() -> None:
    """No field can be assigned."""
    adapter: Any = lora()
    with pytest.raises(AttributeError):
        adapter.strength = 2.0
    with pytest.raises(AttributeError):
        mix(adapter).parts = ()  # pyright: ignore[reportAttributeAccessIssue]


# ---------------------------------------------------------------- as pytrees


def test_tree_map_keeps_names_and_static_data() -> None:
    """`tree.map` changes numbers and keeps names, sites and configs."""
    module = KINDS["wide"]
    mixed = mix(*(Adapter({"q": draw_update(f, module, 1)}, 0.5, f) for f in FAMILIES))
    doubled = jax.tree.map(lambda x: 2 * x, mixed)
    assert [part.name for part in doubled.parts] == list(FAMILIES)
    assert [part.strength for part in doubled.parts] == [1.0] * 6
    assert jax.tree.structure(doubled) == jax.tree.structure(mixed)
    rebuilt = jax.tree.unflatten(jax.tree.structure(mixed), jax.tree.leaves(mixed))
    assert repr(rebuilt) == repr(mixed)


def test_paths_of_leaves_are_readable() -> None:
    """Leaves have readable paths, by which optax and checkpoints name them."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(lora())]
    assert paths == [
        ".updates['model.layers.0.q'].a",
        ".updates['model.layers.0.q'].b",
        ".updates['model.layers.0.q'].scale",
        ".strength",
    ]


def test_names_do_not_affect_the_structure() -> None:
    """Adapters that differ only in name share one compiled program."""
    assert jax.tree.structure(lora("a")) == jax.tree.structure(lora("b"))
    assert hash(jax.tree.structure(lora("a"))) == hash(jax.tree.structure(lora("b")))
    assert jax.tree.structure(lora("a")) != jax.tree.structure(lora("a", sites=2))


def test_adapter_passes_through_jit() -> None:
    """A compiled function takes and returns an adapter."""
    out = jax.jit(lambda a: 0.5 * a)(lora())
    assert isinstance(out, Adapter) and float(out.strength) == 0.5
    assert re.match("style: LoRA rank 2 at 1 site, strength 0.5", repr(out))
