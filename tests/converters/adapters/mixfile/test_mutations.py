"""Corrupted saved mixes give the exact adapters or a `JaxmixError`.

Only the fields that users may edit may change without an error: order, names, strengths and
sources. A hash protects the sum of a part's updates.
"""

import json
import math
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmix
from jaxmix import Adapter, JaxmixError, Mix
from jaxmix.converters.adapters.mixfile import fingerprint
from jaxmix.families import OFT, LoKr, LoRA, Replace, SHiRA, Together

from ..peft.folders import save as save_peft

FILES = ("mix.json", "mix.safetensors")
_BANK = np.arange(8.0, dtype=np.float32).reshape(2, 4)


def original() -> Mix:
    """Returns a mix of many families and dtypes."""
    rng = np.random.default_rng(0)
    b = rng.normal(size=(5, 2)).astype(ml_dtypes.bfloat16)
    updates = {
        "a": LoRA(_BANK, b, 0.5, magnitude=np.ones(5), kernel=()),
        "b": Together((Replace(bias=np.ones(5)), LoRA(_BANK, b, np.float16(0.3)))),
        "c": LoKr((_BANK,), (_BANK, np.ones((4, 2))), 0.1),
    }
    other = {
        "a": OFT(rng.normal(size=(2, 1)), terms=5, eps=6e-5),
        "ü.d": SHiRA(np.ones(2), np.zeros((2, 2), np.int32)),
    }
    first = Adapter(updates, jnp.float32(0.5), "one", "owner/name@v1")
    return jaxmix.mix(first, Adapter(other, -0.25, "zwei"))


@cache
def saved() -> tuple[bytes, bytes]:
    """Returns the contents of its two files."""
    with TemporaryDirectory() as folder:
        jaxmix.save(original(), f"{folder}/x")
        text, data = (Path(folder, "x", file).read_bytes() for file in FILES)
    return text, data


@cache
def hashes() -> frozenset[str]:
    """Returns the fingerprints of its parts."""
    return frozenset(fingerprint(part) for part in original().parts)


def outcome(text: bytes, data: bytes) -> str:
    """Returns "refused", "same", or "edited" if only editable fields changed."""
    with TemporaryDirectory() as folder:
        for file, content in zip(FILES, (text, data), strict=True):
            Path(folder, file).write_bytes(content)
        try:
            loaded = jaxmix.load(folder)
        except JaxmixError as error:
            assert str(error)
            return "refused"
    # No part's updates have changed.
    assert {fingerprint(part) for part in loaded.parts} <= hashes()
    assert all(math.isfinite(float(part.strength)) for part in loaded.parts)
    record = json.loads(text)
    assert len(loaded.parts) == len(record["parts"])
    for part, fields in zip(loaded.parts, record["parts"], strict=True):
        assert (part.name, part.source) == (fields["name"], fields["source"])
        if not isinstance(fields["strength"], dict):
            assert part.strength == fields["strength"]
    unchanged = [(p.name, p.source, float(p.strength)) for p in original().parts]
    is_same = [(p.name, p.source, float(p.strength)) for p in loaded.parts] == unchanged
    return "same" if is_same and isinstance(loaded, Mix) else "edited"


def test_unchanged_files_load() -> None:
    """Unchanged files load as the same mix."""
    assert outcome(*saved()) == "same"


def mutated_bytes(draw: Any, data: bytes) -> bytes:
    """Changes, removes or inserts some bytes, or cuts off the end."""
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        mutation = draw(st.sampled_from(["set", "flip", "cut", "insert", "end", "copy"]))
        if mutation == "set":
            data = data[:position] + draw(st.binary(min_size=1, max_size=4)) + data[position + 1 :]
        elif mutation == "flip" and data:
            data = (
                data[:position]
                + bytes([data[position] ^ (1 << draw(st.integers(0, 7)))])
                + data[position + 1 :]
            )
        elif mutation == "cut":
            data = data[:position] + data[position + draw(st.integers(1, 9)) :]
        elif mutation == "insert":
            data = data[:position] + draw(st.binary(min_size=1, max_size=9)) + data[position:]
        elif mutation == "copy":
            data = (
                data[:position]
                + data[position : position + draw(st.integers(1, 40))]
                + data[position:]
            )
        else:
            data = data[:position]
    return data


_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
)
_KEYS = st.sampled_from(
    ["family", "tensor", "parts", "updates", "a", "scale", "kernel", "strength", "source", "x"]
)
JSON = st.recursive(
    _LEAVES | st.sampled_from(["LoRA", "Together", "0/a/a", "owner/../x", "..", "/x", "mix", "."]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


def value_paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values in JSON data."""
    paths = [path] if path else []
    items: Any = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else items:
        paths += value_paths(value, (*path, key))
    return paths


def mutated_fields(draw: Any, text: bytes) -> bytes:
    """Changes, removes, adds or moves some values of the JSON."""
    data = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(sorted(value_paths(data), key=repr)))
        holder = data
        for key in where[:-1]:
            holder = holder[key]
        mutation = draw(st.sampled_from(["set", "drop", "add", "swap", "near"]))
        old = holder[where[-1]]
        if mutation == "set":
            holder[where[-1]] = draw(JSON)
        elif mutation == "near" and type(old) in (int, float) and abs(old) < 1e9:
            holder[where[-1]] = draw(st.sampled_from([-old, old + 1, old * 2, float(old), 0, -0.0]))
        elif mutation == "drop":
            del holder[where[-1]]
        elif mutation == "add" and isinstance(holder, dict):
            holder[draw(_KEYS | st.text(max_size=3))] = draw(JSON)
        elif mutation == "swap":
            other = draw(st.sampled_from(sorted(value_paths(data), key=repr)))
            value = data
            for key in other:
                value = value[key]
            holder[where[-1]] = json.loads(json.dumps(value))
        if not value_paths(data):
            break
    return json.dumps(data).encode()


def mutated_tensors(draw: Any, data: bytes) -> bytes:
    """Changes the header's keys, shapes, dtypes, offsets and metadata, and updates its length."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    keys = sorted(key for key in header if key != "__metadata__")
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(keys))
        if key not in header:
            continue
        entry = header[key]
        mutation = draw(
            st.sampled_from(["name", "shape", "dtype", "swap", "drop", "metadata", "data"])
        )
        if mutation == "name":
            header[draw(st.sampled_from(keys) | st.text(max_size=3))] = header.pop(key)
        elif mutation == "shape":
            size = math.prod(entry["shape"])
            shapes = [[size], entry["shape"][::-1], [1, *entry["shape"]], [], [size + 1], [0]]
            entry["shape"] = draw(st.sampled_from(shapes))
        elif mutation == "dtype":
            entry["dtype"] = draw(st.sampled_from(["F64", "F32", "F16", "BF16", "I32", "I64", "X"]))
        elif mutation == "swap":
            other = draw(st.sampled_from(keys))
            if other in header:
                header[key], header[other] = header[other], header[key]
        elif mutation == "drop":
            del header[key]
        elif mutation == "metadata":
            header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), JSON, max_size=2))
        else:
            rest = mutated_bytes(draw, rest)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@settings(max_examples=settings().max_examples * 5)
@given(data=st.data())
def test_mutated_files_are_exact_or_refused(data: st.DataObject) -> None:
    """Mutates the bytes of either file, the JSON fields, or the tensors' header."""
    text, tensors = saved()
    mutation = data.draw(st.sampled_from(["text", "fields", "bytes", "header", "both"]))
    if mutation in ("text", "both"):
        text = mutated_bytes(data.draw, text)
    if mutation == "fields":
        text = mutated_fields(data.draw, text)
    if mutation in ("bytes", "both"):
        tensors = mutated_bytes(data.draw, tensors)
    if mutation == "header":
        tensors = mutated_tensors(data.draw, tensors)
    outcome(text, tensors)


@settings(max_examples=settings().max_examples * 2)
@given(data=JSON | st.fixed_dictionaries({"format": st.just("jaxmix"), "parts": st.lists(JSON)}))
def test_arbitrary_json_is_a_mix_or_refused(data: Any) -> None:
    """Arbitrary JSON read as a recipe is an empty mix or is refused."""
    content = {"version": 1, **data} if isinstance(data, dict) else data
    with TemporaryDirectory() as folder:
        path = Path(folder, "recipe.json")
        path.write_text(json.dumps(content))
        try:
            loaded = jaxmix.load(path)
        except JaxmixError as error:
            assert str(error)
        else:
            assert isinstance(loaded, Mix) and jax.tree.leaves(loaded) == []


@cache
def shelf() -> tuple[TemporaryDirectory[str], frozenset[str]]:
    """Returns a temporary folder of adapters for recipes, and the adapters' fingerprints."""
    holder = TemporaryDirectory()
    folder = Path(holder.name)
    save_peft(folder / "lora")
    save_peft(folder / "in" / "oft", "oft")
    jaxmix.save(original(), folder / "mixed")
    known = (jaxmix.load(folder / "lora"), jaxmix.load(folder / "in" / "oft"))
    return holder, frozenset(map(fingerprint, known)) | hashes()


def recipe_outcome(text: bytes) -> str:
    """Returns "refused", or "read" if the recipe loads adapters of its folder."""
    holder, hashes_of_parts = shelf()
    path = Path(holder.name, "recipe.json")
    path.write_bytes(text)
    try:
        loaded = jaxmix.load(path)
    except JaxmixError as error:
        assert str(error)
        return "refused"
    assert {fingerprint(part) for part in loaded.parts} <= hashes_of_parts
    assert all(math.isfinite(float(part.strength)) for part in loaded.parts)
    return "read"


def full_recipe() -> bytes:
    """Returns a recipe with every field."""
    oft = jaxmix.load(Path(shelf()[0].name, "in", "oft"))
    parts = [
        {"source": "lora", "strength": 0.5, "name": "a", "options": {}},
        {"source": "in", "subfolder": "oft", "format": "peft", "sha256": fingerprint(oft)},
        {"source": "mixed", "strength": -2, "name": "b"},
    ]
    return json.dumps({"format": "jaxmix", "version": 1, "parts": parts}).encode()


def test_unchanged_recipe_loads() -> None:
    """The unchanged recipe loads."""
    assert recipe_outcome(full_recipe()) == "read"


@settings(max_examples=settings().max_examples * 2)
@given(data=st.data())
def test_mutated_recipes_are_read_or_refused(data: st.DataObject) -> None:
    """Mutates the bytes or the fields of a recipe."""
    mutated = data.draw(st.sampled_from([mutated_bytes, mutated_fields]))
    recipe_outcome(mutated(data.draw, full_recipe()))
