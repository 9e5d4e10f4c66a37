"""Hashes an adapter's updates, independently of its file."""

import hashlib
import json
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.mixfile.coding import encode_strength, encode_updates
from jaxmix.converters.adapters.mixfile.tensors import DTYPES, digest
from jaxmix.mixing import Mix

__all__ = ["fingerprint"]


def fingerprint(adapter: Adapter | Mix, digests: dict[int, str] | None = None) -> str:
    """Returns the SHA-256 of an adapter's families, fields and the bytes of its arrays.

    It does not depend on name, source, strength, the order of sites, or the file format: the same
    factors have the same hash. The hash of a mix is that of its parts, in order, with their
    strengths.

    Args:
        adapter: The adapter or mix.
        digests: A cache of the SHA-256 of arrays by ``id``; extended. The arrays must stay alive.

    Returns:
        64 hexadecimal digits.

    Raises:
        AdapterError: If an update can't be written, and so not hashed.

    Example:
        >>> fingerprint(Adapter({})) == fingerprint(0.5 * Adapter({}, name="b"))
        True

    Source: FIPS 180-4; the canonical form is JSON with sorted keys, with dtype, shape and SHA-256
    of its little-endian bytes for an array (n, …).
    """
    known = {} if digests is None else digests

    def leaf(array: Any, path: str) -> dict[str, Any]:
        if id(array) not in known:
            known[id(array)] = digest(array)
        return {
            "dtype": DTYPES[array.dtype],
            "sha256": known[id(array)],
            "shape": list(array.shape),
        }

    if isinstance(adapter, Adapter):
        data: Any = encode_updates(adapter, lambda site: leaf)
    else:
        data = [
            [fingerprint(part, known), encode_strength(part.strength, leaf)]
            for part in adapter.parts
        ]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
