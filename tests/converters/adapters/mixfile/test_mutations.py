"""Saved mixes with bytes, fields and tensors changed: the exact answer, or a `JaxmixError`.

What may differ without an error is what people may edit: order, names, strengths, sources. The sum
of what a part does has its hash.
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
    """A mix of many families and dtypes."""
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
    """Its two files."""
    with TemporaryDirectory() as folder:
        jaxmix.save(original(), f"{folder}/x")
        one, other = (Path(folder, "x", file).read_bytes() for file in FILES)
    return one, other


@cache
def hashes() -> frozenset[str]:
    """What its parts do."""
    return frozenset(fingerprint(part) for part in original().parts)


def tried(text: bytes, data: bytes) -> str:
    """What comes of two files: "refused", "same", or "edited" where only what may be edited is."""
    with TemporaryDirectory() as folder:
        for file, content in zip(FILES, (text, data), strict=True):
            Path(folder, file).write_bytes(content)
        try:
            found = jaxmix.load(folder)
        except JaxmixError as error:
            assert str(error)
            return "refused"
    # Hash by hash: nothing that a part does has changed.
    assert {fingerprint(part) for part in found.parts} <= hashes()
    assert all(math.isfinite(float(part.strength)) for part in found.parts)
    told = json.loads(text)
    assert len(found.parts) == len(told["parts"])
    for part, said in zip(found.parts, told["parts"], strict=True):
        assert (part.name, part.source) == (said["name"], said["source"])
        if not isinstance(said["strength"], dict):
            assert part.strength == said["strength"]
    kept = [(p.name, p.source, float(p.strength)) for p in original().parts]
    is_same = [(p.name, p.source, float(p.strength)) for p in found.parts] == kept
    return "same" if is_same and isinstance(found, Mix) else "edited"


def test_the_files_as_they_are() -> None:
    """The check passes what is right."""
    assert tried(*saved()) == "same"


def mutated_bytes(draw: Any, data: bytes) -> bytes:
    """Some bytes changed, cut out, put in, or the end cut off."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["set", "flip", "cut", "insert", "end", "copy"]))
        if how == "set":
            data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
        elif how == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at] + data[at + draw(st.integers(1, 9)) :]
        elif how == "insert":
            data = data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
        elif how == "copy":
            data = data[:at] + data[at : at + draw(st.integers(1, 40))] + data[at:]
        else:
            data = data[:at]
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


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    found = [path] if path else []
    items: Any = data.items() if isinstance(data, dict) else ()
    for key, value in enumerate(data) if isinstance(data, list) else items:
        found += places(value, (*path, key))
    return found


def mutated_fields(draw: Any, text: bytes) -> bytes:
    """Some values of the JSON changed, taken out, added, or moved."""
    data = json.loads(text)
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(sorted(places(data), key=repr)))
        holder = data
        for key in where[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["set", "drop", "add", "swap", "near"]))
        old = holder[where[-1]]
        if how == "set":
            holder[where[-1]] = draw(JSON)
        elif how == "near" and type(old) in (int, float) and abs(old) < 1e9:
            holder[where[-1]] = draw(st.sampled_from([-old, old + 1, old * 2, float(old), 0, -0.0]))
        elif how == "drop":
            del holder[where[-1]]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(_KEYS | st.text(max_size=3))] = draw(JSON)
        elif how == "swap":
            other = draw(st.sampled_from(sorted(places(data), key=repr)))
            value = data
            for key in other:
                value = value[key]
            holder[where[-1]] = json.loads(json.dumps(value))
        if not places(data):
            break
    return json.dumps(data).encode()


def mutated_tensors(draw: Any, data: bytes) -> bytes:
    """The header's keys, shapes, dtypes, offsets and metadata changed; the length kept true."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    keys = sorted(key for key in header if key != "__metadata__")
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(keys))
        if key not in header:
            continue
        told = header[key]
        how = draw(st.sampled_from(["name", "shape", "dtype", "swap", "drop", "metadata", "data"]))
        if how == "name":
            header[draw(st.sampled_from(keys) | st.text(max_size=3))] = header.pop(key)
        elif how == "shape":
            size = math.prod(told["shape"])
            shapes = [[size], told["shape"][::-1], [1, *told["shape"]], [], [size + 1], [0]]
            told["shape"] = draw(st.sampled_from(shapes))
        elif how == "dtype":
            told["dtype"] = draw(st.sampled_from(["F64", "F32", "F16", "BF16", "I32", "I64", "X"]))
        elif how == "swap":
            other = draw(st.sampled_from(keys))
            if other in header:
                header[key], header[other] = header[other], header[key]
        elif how == "drop":
            del header[key]
        elif how == "metadata":
            header["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), JSON, max_size=2))
        else:
            rest = mutated_bytes(draw, rest)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


@settings(max_examples=settings().max_examples * 5)
@given(data=st.data())
def test_mutations(data: st.DataObject) -> None:
    """Of the bytes of either file, the fields of the one, the header of the other."""
    text, tensors = saved()
    how = data.draw(st.sampled_from(["text", "fields", "bytes", "header", "both"]))
    if how in ("text", "both"):
        text = mutated_bytes(data.draw, text)
    if how == "fields":
        text = mutated_fields(data.draw, text)
    if how in ("bytes", "both"):
        tensors = mutated_bytes(data.draw, tensors)
    if how == "header":
        tensors = mutated_tensors(data.draw, tensors)
    tried(text, tensors)


@settings(max_examples=settings().max_examples * 2)
@given(data=JSON | st.fixed_dictionaries({"format": st.just("jaxmix"), "parts": st.lists(JSON)}))
def test_json_of_anything(data: Any) -> None:
    """As a recipe, too."""
    whole = {"version": 1, **data} if isinstance(data, dict) else data
    with TemporaryDirectory() as folder:
        path = Path(folder, "recipe.json")
        path.write_text(json.dumps(whole))
        try:
            found = jaxmix.load(path)
        except JaxmixError as error:
            assert str(error)
        else:
            assert isinstance(found, Mix) and jax.tree.leaves(found) == []


@cache
def shelf() -> tuple[TemporaryDirectory[str], frozenset[str]]:
    """A folder with adapters to name in recipes, and what they do; removed at the end."""
    holder = TemporaryDirectory()
    folder = Path(holder.name)
    save_peft(folder / "lora")
    save_peft(folder / "in" / "oft", "oft")
    jaxmix.save(original(), folder / "mixed")
    known = (jaxmix.load(folder / "lora"), jaxmix.load(folder / "in" / "oft"))
    return holder, frozenset(map(fingerprint, known)) | hashes()


def recipe_tried(text: bytes) -> str:
    """What comes of a recipe: "refused", or "read" as adapters that lie beside it."""
    holder, known = shelf()
    path = Path(holder.name, "recipe.json")
    path.write_bytes(text)
    try:
        found = jaxmix.load(path)
    except JaxmixError as error:
        assert str(error)
        return "refused"
    assert {fingerprint(part) for part in found.parts} <= known
    assert all(math.isfinite(float(part.strength)) for part in found.parts)
    return "read"


def told_recipe() -> bytes:
    """A recipe with every field."""
    oft = jaxmix.load(Path(shelf()[0].name, "in", "oft"))
    parts = [
        {"source": "lora", "strength": 0.5, "name": "a", "options": {}},
        {"source": "in", "subfolder": "oft", "format": "peft", "sha256": fingerprint(oft)},
        {"source": "mixed", "strength": -2, "name": "b"},
    ]
    return json.dumps({"format": "jaxmix", "version": 1, "parts": parts}).encode()


def test_the_recipe_as_it_is() -> None:
    """The check passes what is right."""
    assert recipe_tried(told_recipe()) == "read"


@settings(max_examples=settings().max_examples * 2)
@given(data=st.data())
def test_mutated_recipes(data: st.DataObject) -> None:
    """Of the bytes and of the fields."""
    mutated = data.draw(st.sampled_from([mutated_bytes, mutated_fields]))
    recipe_tried(mutated(data.draw, told_recipe()))
