"""Reads jaxmix's own mixes: mix.json lists the parts, mix.safetensors holds their arrays."""

import math
from collections.abc import Mapping
from typing import Any

from ..case import Adapter
from ..tensorfile import Tensor
from .formulas import Change, added, loha_delta, lora_delta, oft
from .names import expect, floats, is_number, json_object, matrices, tensors_of

__all__ = ["read_mix"]


def read_mix(
    adapter: Adapter, files: Mapping[str, bytes], modules: Mapping[str, tuple[int, ...]]
) -> list[dict[str, Change]]:
    """Returns the changes of each part, in order of application. See `oracle.peft.read`."""
    head = json_object(files, f"{adapter.path}/mix.json")
    tensors, _ = tensors_of(files, f"{adapter.path}/mix.safetensors")
    expect(head.get("format") == "jaxmix" and head.get("version") == 1, "no mix")
    parts = head.get("parts")
    expect(isinstance(parts, list), "no parts")
    chain = []
    for part in parts or []:
        expect(isinstance(part, dict) and isinstance(part.get("updates"), dict), "a part")
        strength: Any = part.get("strength")
        expect(is_number(strength), "a strength")
        changes = {}
        for site, update in part["updates"].items():
            expect(site in modules, f"no module {site}")
            shape = (modules[site][0], math.prod(modules[site][1:]))
            changes[site] = _update(update, tensors, shape, strength * adapter.strength)
        chain.append(changes)
    return chain


def _update(data: Any, tensors: Mapping[str, Tensor], shape: Any, strength: float) -> Change:
    """Returns the change of one update."""
    expect(isinstance(data, dict), "no update")

    def array(name: str) -> Any:
        place = data.get(name)
        expect(isinstance(place, dict) and place.get("tensor") in tensors, f"no {name}")
        return floats(tensors[place["tensor"]], name)

    match data.get("family"):
        case "LoRA":
            a, b = array("a"), array("b")
            matrices("LoRA", a, b)
            expect(a.shape[0] == b.shape[1] and (b.shape[0], a.shape[1]) == shape, "shapes")
            expect(set(data) == {"family", "a", "b", "scale"}, "fields")
            expect(is_number(data["scale"]), "a scale")
            return added(lora_delta(a, b, strength * data["scale"]))
        case "LoHa":
            expect(set(data) == {"family", "b1", "a1", "b2", "a2", "scale"}, "fields")
            expect(is_number(data["scale"]), "a scale")
            names = {"hada_w1_a": "b1", "hada_w1_b": "a1", "hada_w2_a": "b2", "hada_w2_b": "a2"}
            fields = {theirs: array(ours) for theirs, ours in names.items()}
            matrices("LoHa", *fields.values())
            return added(loha_delta(fields, strength * data["scale"]))
        case "OFT":
            expect(set(data) <= {"family", "generator", "terms"}, "fields")
            terms = data.get("terms")
            expect(terms is None or (type(terms) is int and 1 <= terms <= 1000), "terms")
            return oft(array("generator"), terms=terms, strength=strength)
        case family:
            expect(False, f"the family {family!r}")
            raise AssertionError
