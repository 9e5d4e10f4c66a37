"""Changes bytes and JSON, regardless of their meaning."""

import copy
import json
import random
from typing import Any

__all__ = ["VALUES", "bytes_changed", "json_changed"]

_DEEP: Any = 1
for _ in range(200):
    _DEEP = [_DEEP]

# Values of every type and size.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 4, 5, 7, 8, 16, -1, -3, 0.0, -0.0, 0.5, 1.5, 2.0, 1e-320, 1e30,
    1e308, float("nan"), float("inf"), -float("inf"), 2**31, 2**63, 2**64, 10**400, "", "x", "2",
    "1e5", "é\u202e", "none", "all", "a" * 5000, [], ["x"], [1], [0, 1], [2, 2], [4, 2], [1, 2],
    [0, 2], [[1, 2]], {}, {"x": 1}, {"q_proj": 4}, {"q_proj": 1.5}, {"[": 1}, {"": 3}, {".*": 2},
    {"k_proj": None}, {"x": {"y": []}}, ["q_proj"], ["q_proj", "k_proj", "down_proj"], "q_proj",
    ".*_proj", "(", "all-linear", "(x+x+)+y", "pissa", "olora", "gaussian", "LORA", "LOHA", "OFT",
    "IA3", "F32", "BF16", "fp8", "gptq", "bfloat16", "../x", "/etc/passwd", "0.10.0", "0.17.1",
)  # fmt: skip
# What stands in a file of JSON instead of a value, and can't be made by a writer of JSON.
_RAW = ("1e999", "-1e999", "1" * 2000, "01", "+1", "'x'", "\\u0000", '"\\ud800"', "[" * 3000, "nul")
# Names that readers look for.
_KEYS = (
    "r", "lora_alpha", "alpha", "peft_type", "use_dora", "use_rslora", "lora_bias", "bias",
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "inference_mode",
    "peft_version", "x", "tie_word_embeddings", "quantization_config", "weight_block_size", "scale",
    "rank", "strength", "coft", "eps", "block_share", "feedforward_modules", "format", "version",
    "model_type", "torch_dtype", "trainable_token_indices", "layer_replication", "unet.r",
)  # fmt: skip


def bytes_changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Flips, removes or inserts bytes, or cuts off the end."""
    changed = bytearray(data)
    position = (
        rng.randrange(len(data) + 1)
        if rng.random() < 0.5
        else rng.randrange(min(len(data), 300) + 1)
    )
    change = rng.choice(["flip", "flip", "set", "cut", "insert", "end", "more", "copy", "empty"])
    if change == "flip" and position < len(data):
        changed[position] ^= 1 << rng.randrange(8)
    elif change == "set" and position < len(data):
        changed[position] = rng.choice([0, 9, 32, 34, 44, 48, 57, 91, 93, 123, 125, 127, 128, 255])
    elif change == "cut":
        del changed[position : position + rng.randrange(1, 20)]
    elif change == "insert":
        changed[position:position] = rng.randbytes(rng.randrange(1, 10))
    elif change == "end":
        del changed[position:]
    elif change == "more":
        changed += rng.choice([b"\0", b" ", b"\n", b"}", bytes(64)])
    elif change == "copy":
        changed[position:position] = changed[position : position + rng.randrange(1, 60)]
    elif change == "empty":
        changed = bytearray(
            rng.choice([b"", b"{}", b"null", b"[]", b"\xff\xfe", b"\xef\xbb\xbf" + data])
        )
    return bytes(changed), f"{change} at byte {position}"


def json_changed(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Changes, removes, adds, moves, nests or repeats a value; changes bytes if it is not JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_changed(data, rng)
    places = _places(value)
    if not places:
        return bytes_changed(data, rng)
    *above, last = rng.choice(places)
    holder = value
    for step in above:
        holder = holder[step]
    old, new = holder[last], copy.deepcopy(rng.choice(VALUES))
    change = rng.choice(
        ["set", "set", "set", "near", "drop", "add", "swap", "nest", "twice", "raw", "type"]
    )
    if change == "set":
        holder[last] = new
    elif change == "near":
        new = _near(old, rng)
        holder[last] = new
    elif change == "drop":
        del holder[last]
    elif change == "add":
        last = rng.choice(_KEYS)
        if isinstance(holder, dict):
            holder[last] = new
        else:
            holder.append(new)
    elif change == "swap":
        new = _at(value, rng.choice(places))
        holder[last] = copy.deepcopy(new)
    elif change == "nest":
        new = rng.choice([[old], {"x": old}, _DEEP])
        holder[last] = new
    elif change == "type":
        new = _retyped(old)
        holder[last] = new
    else:
        holder[last] = "@@"
        raw = rng.choice(_RAW) if change == "raw" else json.dumps(old)
        if change == "twice":
            raw = f"{json.dumps(old)}, {json.dumps(str(last))}: {json.dumps(new)}"
            if isinstance(holder, list):
                raw = f"{json.dumps(old)}, {json.dumps(old)}"
        text = json.dumps(value).replace('"@@"', raw)
        return text.encode("utf-8", "surrogatepass"), f"{change} {last}: {raw[:60]}"
    dumped = json.dumps(new)
    return json.dumps(
        value
    ).encode(), f"{change} {'.'.join(map(str, (*above, last)))[:60]}: {dumped[:60]}"


def _near(old: Any, rng: random.Random) -> Any:
    """Returns a slightly different value."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        wide = float(max(-(10**300), min(old, 10**300)))  # some integers are beyond all floats
        return rng.choice([old + 1, old - 1, old * 2, -old, wide, wide / 2, wide * 1e10])
    if isinstance(old, str):
        position = rng.randrange(len(old) + 1)
        return (
            old[:position] + rng.choice(["", "x", ".", " ", "_", "é", "\0"]) + old[position + 1 :]
        )
    if isinstance(old, list):
        return rng.choice([old[:-1], old * 2, old[::-1]])
    return {} if isinstance(old, dict) else 1


def _retyped(old: Any) -> Any:
    """Returns the same value in another type."""
    if isinstance(old, bool):
        return int(old)
    if isinstance(old, int | float):
        return str(old)
    if isinstance(old, str):
        return [old]
    if isinstance(old, list):
        return dict(enumerate(old))
    return list(old) if isinstance(old, dict) else 0


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values in a JSON value."""
    paths = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            paths += _places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:20]):
            paths += _places(inner, (*path, i))
    return paths


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value
