"""Changes the header of a file of tensors."""

import json
import math
import random

from ..tensorfile import SIZES
from .texts import VALUES, json_changed

__all__ = ["header_changed"]


def header_changed(text: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Returns a changed header, with its actual length."""
    header = json.loads(text)
    keys = [key for key in header if key != "__metadata__"]
    if not keys or rng.random() < 0.2:
        return json_changed(text, rng)
    key = rng.choice(keys)
    entry = header[key]
    change = rng.choice(
        ["dtype", "shape", "offsets", "swap", "extra", "field", "twice", "spaces", "metadata"]
    )
    if change == "dtype":
        same = [name for name, size in SIZES.items() if size == SIZES[entry["dtype"]]]
        entry["dtype"] = rng.choice(
            [*same, *SIZES, "f32", "F4", "F8_E4M3FNUZ", "I4", "X", "", None, 3]
        )
    elif change == "shape":
        shape, size = entry["shape"], math.prod(entry["shape"])
        entry["shape"] = rng.choice(
            [
                shape[::-1],
                [size],
                [1, *shape],
                [*shape, 1],
                [],
                [size + 1],
                [0],
                [-1, *shape],
                [-size, -1],
                [2**32, 2**32],
                [2**63, 0],
                [float(n) for n in shape],
                "x",
                None,
                [str(n) for n in shape],
                [2, size // 2],
                [True],
                [*shape, 0],
                [[size]],
            ]
        )
    elif change == "offsets":
        start, end = entry["data_offsets"]
        other = header[rng.choice(keys)]["data_offsets"]
        entry["data_offsets"] = rng.choice(
            [
                [start + 1, end],
                [start, end + 8],
                [start + 8, end + 8],
                [end, start],
                [0, end - start],
                [start, end - 8],
                [2**62, 2**62 + end - start],
                [-8, end],
                [start, 2**64],
                [start],
                [start, end, end],
                [float(start), float(end)],
                None,
                "x",
                other,
                [start, start],
            ]
        )
    elif change == "swap":
        other = rng.choice(keys)
        header[key], header[other] = header[other], header[key]
    elif change == "extra":
        header[rng.choice(["x", "", key + ".x"])] = rng.choice(
            [{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, dict(entry), 3, [], {}]
        )
    elif change == "field":
        entry[rng.choice([*entry, "x"])] = rng.choice(VALUES)
    elif change == "twice":
        copied = json.dumps(header[rng.choice(keys)])
        return text.rstrip()[:-1] + f", {json.dumps(key)}: {copied}}}".encode(), f"twice {key}"
    elif change == "spaces":
        spaces = rng.choice([b" ", b"\n\t", b" " * 5000])
        return rng.choice([spaces + text, text + spaces]), "spaces"
    else:
        header["__metadata__"] = rng.choice([*VALUES, {"format": 3}, {"format": "pt", "x": "y"}])
    return json.dumps(header).encode(), f"{change} {key}: {json.dumps(header.get(key))[:80]}"
