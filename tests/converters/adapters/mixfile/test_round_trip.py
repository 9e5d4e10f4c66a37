"""Saved mixes load bit for bit: every family, dtype, strength and nesting."""

import json
import struct
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxmix
from jaxmix import Adapter, Mix
from jaxmix.converters.adapters.mixfile import fingerprint
from jaxmix.families import LoKr, LoRA, Replace, Together

from ....families.table import ROWS
from ....laws.draws import KINDS, MAKERS, adapters, draw_update, few, trees
from .same import assert_same, bits

pytestmark = pytest.mark.usefixtures("no_compiling")

OTHERS = (np.float64, np.float16, ml_dtypes.bfloat16)
FLOATS = (np.float32, *OTHERS)
# Equal leaves and structures compose alike, so one row of each way of acting on a weight is enough.
COMPOSED = ("bias and dora", "boft two factors", "tokens", "waveft", "vera shared")


def lora(seed: int = 0, dtype: Any = np.float32, **more: Any) -> LoRA:
    """Returns a LoRA for a weight (5, 4)."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 4)).astype(dtype), rng.normal(size=(5, 2)).astype(dtype)
    return LoRA(a, b, 0.1 + 0.2, **more)


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("name", ROWS)
def test_every_family_round_trips(name: str, i: int, tmp_path: Path) -> None:
    """Every family loads as saved in float32 and one other dtype."""
    row = ROWS[name]
    dtype = np.float32 if i == 0 else OTHERS[list(ROWS).index(name) % len(OTHERS)]

    def cast(x: Any) -> Any:
        return np.asarray(x).astype(dtype) if np.asarray(x).dtype.kind == "f" else np.asarray(x)

    factors = {key: cast(x) for key, x in row.factors(3).items()}
    adapter = Adapter({"a.b": row.build(factors, row.config)}, 0.7, name, "owner/name@main")
    assert_same(jaxmix.load(jaxmix.save(adapter, tmp_path / "saved")), adapter)


@pytest.mark.parametrize("name", COMPOSED)
def test_loaded_adapter_composes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    """A weight and a bias are composed alike from the loaded arrays."""
    row = ROWS[name]
    adapter = Adapter({"a.b": row.build(row.factors(3), row.config)}, 0.7)
    loaded = jaxmix.load(jaxmix.save(adapter, tmp_path / "saved"))
    params = {"a.b.weight": np.ones(row.weight, np.float32)}
    if adapter.updates["a.b"].has_bias:
        params["a.b.bias"] = np.ones(row.shape[:1], np.float32)
    new, old = jaxmix.compose(params, loaded), jaxmix.compose(params, adapter)
    assert [bits(new[key]) for key in params] == [bits(old[key]) for key in params]


@few()
@hypothesis.given(data=st.data(), drawn=trees())
def test_random_mixes_round_trip(data: st.DataObject, drawn: Any) -> None:
    """Random mixes of all families, dtypes, names and strengths load as saved."""
    modules, _ = drawn
    dtypes = iter(lambda: data.draw(st.sampled_from(FLOATS)), None)
    names = st.text(st.characters(codec="utf-8"), max_size=8)
    strengths = st.floats(allow_nan=False, allow_infinity=False)
    drawn_adapters = data.draw(adapters(modules, strengths=strengths))
    parts = [
        jax.tree.map(
            lambda x: x.astype(next(dtypes)) if getattr(x, "dtype", None) == np.float64 else x,
            replace(part, name=f"{i}{data.draw(names)}", source=data.draw(names)),
        )
        for i, part in enumerate(drawn_adapters)
    ]
    cut = data.draw(st.integers(0, len(parts)))
    mixed = jaxmix.mix(jaxmix.mix(*parts[:cut]), *parts[cut:])
    with TemporaryDirectory() as folder:
        assert_same(jaxmix.load(jaxmix.save(mixed, f"{folder}/mixed")), mixed)
        for i, part in enumerate(parts):
            assert_same(jaxmix.load(jaxmix.save(part, f"{folder}/{i}")), part)


def test_empty_mix_and_adapter_round_trip(tmp_path: Path) -> None:
    """The empty mix and an empty adapter load as saved."""
    for i, item in enumerate((jaxmix.mix(), Adapter({}), jaxmix.mix(Adapter({})))):
        assert_same(jaxmix.load(jaxmix.save(item, tmp_path / str(i))), item)


def test_jax_arrays_load_as_numpy(tmp_path: Path) -> None:
    """JAX arrays load as NumPy arrays of the same dtype and bits."""
    update = lora()
    on_device = jax.tree.map(jnp.asarray, update)
    loaded = jaxmix.load(jaxmix.save(Adapter({"a": on_device}), tmp_path / "x"))
    assert isinstance(loaded.updates["a"].a, np.ndarray)
    assert isinstance(loaded.updates["a"].scale, np.ndarray)
    expected = Adapter({"a": jax.tree.map(np.asarray, on_device)})
    assert_same(loaded, expected)
    assert fingerprint(Adapter({"a": on_device})) == fingerprint(expected) == fingerprint(loaded)


def test_non_contiguous_arrays_round_trip(tmp_path: Path) -> None:
    """Transposed, reversed, sliced, empty and read-only arrays load with the same values."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(4, 6)).astype(ml_dtypes.bfloat16)
    closed = wide[:2, ::-2]
    closed.flags.writeable = False
    for i, a in enumerate((wide.T, wide[::-1], wide[:, 1:4:2], closed, wide[:0], wide[:, :0])):
        adapter = Adapter({"a": LoRA(a, a.T, np.asarray(0.3, np.float16))})
        assert_same(jaxmix.load(jaxmix.save(adapter, tmp_path / str(i))), adapter)


def test_numpy_scalars_load_as_arrays(tmp_path: Path) -> None:
    """NumPy scalars are arrays () and load as such."""
    update = replace(lora(), scale=np.float32(0.1))
    loaded = jaxmix.load(jaxmix.save(Adapter({"a": update}), tmp_path / "x")).updates["a"].scale
    assert bits(loaded) == bits(np.float32(0.1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64])
def test_array_strengths_stay_jax_arrays(dtype: Any, tmp_path: Path) -> None:
    """Array strengths stay JAX arrays of their dtype, float64 included."""
    with jax.enable_x64(True):
        strength = jnp.asarray(1 / 3, dtype)
    mixed = jaxmix.mix(Adapter({"a": lora()}, strength, "a"), Adapter({"a": lora()}, 1 / 3, "b"))
    assert_same(jaxmix.load(jaxmix.save(mixed, tmp_path / "x")), mixed)


@pytest.mark.parametrize("number", [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, 1e22])
def test_python_numbers_round_trip(number: float, tmp_path: Path) -> None:
    """Python floats load bit for bit, and an int stays an int."""
    integer: Any = 2
    mixed = jaxmix.mix(
        Adapter({"a": replace(lora(), scale=number)}, number, "a"),
        Adapter({"a": replace(lora(), scale=integer)}, name="b"),
    )
    assert_same(jaxmix.load(jaxmix.save(mixed, tmp_path / "x")), mixed)


def test_shared_arrays_are_written_once(tmp_path: Path) -> None:
    """An array shared by sites, fields or parts is written once and loads as one object."""
    bank = np.ones((2, 4), np.float32)
    updates = {f"{i}": replace(lora(i), a=bank) for i in range(3)}
    core = np.eye(2)
    mixed = jaxmix.mix(
        Adapter(updates, name="a"),
        Adapter({"k": LoKr((core,), (core, core), 1.0), "0": replace(lora(), a=bank)}, name="b"),
    )
    folder = jaxmix.save(mixed, tmp_path / "x")
    loaded = jaxmix.load(folder)
    assert_same(loaded, mixed)
    a, b = (part.updates for part in loaded.parts)
    assert a["0"].a is a["1"].a is a["2"].a is b["0"].a
    assert b["k"].x[0] is b["k"].y[0] is b["k"].y[1]
    assert len(header(folder / "mix.safetensors")) == 1 + 1 + 3 + 1 + 1
    # Sharing does not change the hash.
    copied = Adapter({site: replace(u, a=u.a.copy()) for site, u in updates.items()})
    assert fingerprint(copied) == fingerprint(mixed.parts[0])


def header(path: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def test_json_is_readable(tmp_path: Path) -> None:
    """The JSON has one line per site and per other field; default values are omitted."""
    update = Together((Replace(bias=np.ones(5)), lora(kernel=(3,), magnitude=np.ones(5))))
    part = Adapter({"a.b": update, "ü/x": lora()}, 0.3, "style", "owner/name@v1")
    folder = jaxmix.save(jaxmix.mix(part), tmp_path / "x")
    assert (
        (folder / "mix.json").read_text(encoding="utf-8")
        == f"""\
{{
  "format": "jaxmix",
  "version": 1,
  "kind": "mix",
  "parts": [
    {{
      "name": "style",
      "strength": 0.3,
      "source": "owner/name@v1",
      "sha256": "{fingerprint(part)}",
      "updates": {{
        "a.b": {{"family": "Together", "parts": [\
{{"family": "Replace", "bias": {{"tensor": "0/a.b/parts.0.bias"}}}}, \
{{"family": "LoRA", "a": {{"tensor": "0/a.b/parts.1.a"}}, "b": {{"tensor": "0/a.b/parts.1.b"}}, \
"scale": 0.30000000000000004, "magnitude": {{"tensor": "0/a.b/parts.1.magnitude"}}, \
"kernel": [3]}}]}},
        "ü/x": {{"family": "LoRA", "a": {{"tensor": "0/ü/x/a"}}, "b": {{"tensor": "0/ü/x/b"}}, \
"scale": 0.30000000000000004}}
      }}
    }}
  ]
}}
"""
    )


def test_order_names_strengths_and_sources_are_editable(tmp_path: Path) -> None:
    """Order, names, strengths and sources may be edited."""
    bank = np.ones((2, 4), np.float32)
    parts = [Adapter({"a": replace(lora(), a=bank, b=np.ones((5, 2)))}, name=n) for n in "ab"]
    folder = jaxmix.save(jaxmix.mix(*parts), tmp_path / "x")
    data = json.loads((folder / "mix.json").read_text())
    data["parts"].reverse()
    data["parts"][0] |= {"name": "first", "strength": 2, "source": "elsewhere"}
    (folder / "mix.json").write_text(json.dumps(data))
    expected = replace(parts[1], name="first", strength=2.0, source="elsewhere")
    assert_same(jaxmix.load(folder), jaxmix.mix(expected, parts[0]))


def test_omitted_defaults_equal_explicit_ones(tmp_path: Path) -> None:
    """Explicit defaults load as omitted ones, so new fields of a family keep old hashes."""
    folder = jaxmix.save(Adapter({"a": lora()}, name="x"), tmp_path / "x")
    data = json.loads((folder / "mix.json").read_text())
    record = data["parts"][0]["updates"]["a"]
    assert set(record) == {"family", "a", "b", "scale"}
    record |= {"kernel": [], "magnitude": None, "bias": None, "embedding": False}
    (folder / "mix.json").write_text(json.dumps(data))
    assert_same(jaxmix.load(folder), Adapter({"a": lora()}, name="x"))
    assert {f.name for f in fields(LoRA)} > set(record) - {"family"}


def test_load_renames_and_scales(tmp_path: Path) -> None:
    """`load` renames an adapter, prefixes the names of a mix's parts, and multiplies strengths."""
    first, second = Adapter({"a": lora()}, 0.5, "one"), Adapter({"a": lora(1)}, name="other")
    single, mixed = jaxmix.save(first, tmp_path / "a"), jaxmix.save(first.parts[0], tmp_path / "b")
    mixed = jaxmix.save(jaxmix.mix(first, second), tmp_path / "c")
    assert jaxmix.load(single).name == "one"
    loaded = jaxmix.load(single, "mine", strength=0.5)
    assert (loaded.name, loaded.strength) == ("mine", 0.25)
    loaded = jaxmix.load(mixed, "m", strength=0.5)
    assert [(p.name, p.strength) for p in loaded.parts] == [("m/one", 0.25), ("m/other", 0.5)]
    assert isinstance(jaxmix.load(mixed / "mix.json"), Mix)
    both = jaxmix.mix(jaxmix.load(mixed, "x"), jaxmix.load(mixed, "y"))
    assert len(jaxmix.load(jaxmix.save(both, tmp_path / "d")).parts) == 4


def test_generated_updates_round_trip(tmp_path: Path) -> None:
    """The updates that tests/laws generates load as saved."""
    for kind in MAKERS:
        for where, module in KINDS.items():
            adapter = Adapter({where: draw_update(kind, module, 1)}, name=kind)
            assert_same(jaxmix.load(jaxmix.save(adapter, tmp_path / f"{kind}-{where}")), adapter)
