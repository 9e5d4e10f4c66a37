"""Rotary position embeddings: the frequencies of a config, and the rotation.

The angle of pair i of a head at position p is ``p·ωᵢ`` with ``ωᵢ = θ^(−2i/head_dim)``. The scalings
below change the frequencies for contexts that are longer than in pretraining.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxmix.errors import CheckpointError, UnsupportedError, listing

__all__ = ["Rope", "read_rope", "rotate", "widened"]

_Params = Mapping[str, Any]
_Scaling = Callable[[np.ndarray, _Params], tuple[np.ndarray, float]]


@dataclass(frozen=True)
class Rope:
    """A rotary embedding: frequencies ω, and a factor of cos and sin.

    Args:
        kind: The name of the scaling, ``default`` for none.
        frequencies: ω (head_dim/2), in radians per position.
        scale: The factor of cos and sin; 1 except for yarn.
    """

    kind: str
    frequencies: tuple[float, ...] = field(repr=False)
    scale: float = 1.0

    def __call__(self, positions: Integer[Array, "b t"], dtype: Any) -> tuple[Array, Array]:
        """Returns ``(cos, sin)`` of the angles, each (b, t, head_dim), computed in float32."""
        wide = widened(dtype)
        omega = jnp.asarray(self.frequencies + self.frequencies, wide)
        angles = positions[:, :, None].astype(wide) * omega[None, None, :]
        return (
            (jnp.cos(angles) * self.scale).astype(dtype),
            (jnp.sin(angles) * self.scale).astype(dtype),
        )


def widened(dtype: Any) -> Any:
    """Returns the dtype for angles, norms and softmax, which is at least float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def rotate(
    x: Float[Array, "b t h d"], cos: Float[Array, "b t d"], sin: Float[Array, "b t d"]
) -> Float[Array, "b t h d"]:
    """Rotates the pairs ``(x[i], x[i + d/2])`` of each head, as in Hugging Face's checkpoints.

    Args:
        x: The queries or keys.
        cos: The cosines of the angles; both halves of d are equal.
        sin: The sines of the angles, likewise.

    Returns:
        ``x·cos + (−x₂, x₁)·sin``.
    """
    first, second = jnp.split(x, 2, axis=-1)
    swapped = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None, :] + swapped * sin[:, :, None, :]


def read_rope(values: Mapping[str, Any], head_dim: int, length: int, where: str) -> Rope:
    """Reads the rotary embedding of a config.

    transformers 4 wrote ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``);
    transformers 5 writes both into ``rope_parameters``.

    Args:
        values: The fields of config.json.
        head_dim: The size of a head.
        length: ``max_position_embeddings``, the default of some parameters.
        where: The file, for messages.

    Returns:
        The frequencies and the factor.

    Raises:
        UnsupportedError: If a scaling or one of its fields is not supported.
        CheckpointError: If a field is missing, not a number, or given twice with different values.

    Source: ``transformers/modeling_rope_utils.py``; yarn is https://arxiv.org/abs/2309.00071.
    """
    params = _params(values, where)
    kind = params.pop("rope_type")
    if kind not in _SCALINGS:
        raise UnsupportedError(
            f"{where}: rope type {kind!r} is not supported, expected one of "
            f"{', '.join(_SCALINGS)}. If texts are not longer than in training, remove the scaling."
        )
    required, optional, scaling = _SCALINGS[kind]
    known = {"rope_theta": 10000.0, **optional}
    problems = [
        f"{name} = {value!r}"
        for name, value in params.items()
        if value is not None and name not in known and name not in required
    ]
    if problems:
        raise UnsupportedError(
            f"{where}: unsupported fields of a {kind!r} rope:{listing(problems)}\n"
            "If they do not affect the angles, remove them from the file."
        )
    stated = {name: value for name, value in params.items() if value is not None}
    if kind in ("llama3", "yarn"):
        stated.setdefault("original_max_position_embeddings", length)
    if kind == "yarn" and "factor" not in stated:
        stated["factor"] = length / stated["original_max_position_embeddings"]
    filled: dict[str, Any] = {**known, **stated}
    wrong = [
        f"{name} is {filled.get(name)!r}"
        for name in ("rope_theta", *required, *optional)
        if not _is_valid(name, filled.get(name), name in optional)
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: invalid fields of a {kind!r} rope, expected positive numbers:"
            f"{listing(wrong)}\nWas the file edited?"
        )
    # Round to float32 where transformers does: at large positions one ulp is visible.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(filled["rope_theta"], exponents, dtype=np.float64).astype(np.float32)
    omega, scale = scaling((1 / powers).astype(np.float64), filled)
    return Rope(kind, tuple(np.asarray(omega, np.float32).tolist()), scale)


def _params(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Merges both spellings into one dict with ``rope_type``."""
    old, new = values.get("rope_scaling"), values.get("rope_parameters")
    if old and new and old != new:
        raise CheckpointError(
            f"{where}: rope_scaling is {old!r} and rope_parameters is {new!r}. Keep one of them."
        )
    stated = old or new or {}
    if not isinstance(stated, dict):
        raise CheckpointError(f"{where}: the rope parameters are {stated!r}, expected an object.")
    params = dict(stated)
    old_type = params.pop("type", None)
    params["rope_type"] = params.get("rope_type") or old_type or "default"
    theta = values.get("rope_theta")
    if params.get("rope_theta") is None:
        params["rope_theta"] = theta
    elif theta is not None and theta != params["rope_theta"]:
        raise CheckpointError(
            f"{where}: rope_theta is {theta!r} at the top level and {params['rope_theta']!r} in "
            "the rope parameters. Keep one of them."
        )
    # No scaling knows this field, so every value except 1 is refused.
    params.setdefault("partial_rotary_factor", values.get("partial_rotary_factor"))
    if params["partial_rotary_factor"] == 1:
        del params["partial_rotary_factor"]
    return params


def _is_valid(name: str, value: Any, is_optional: bool) -> bool:
    """Whether a field is a positive number, a valid flag, or absent and optional."""
    if value is None:
        return is_optional
    if name == "truncate":
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _default(omega: np.ndarray, params: _Params) -> tuple[np.ndarray, float]:
    return omega, 1.0


def _linear(omega: np.ndarray, params: _Params) -> tuple[np.ndarray, float]:
    return omega / params["factor"], 1.0


def _llama3(omega: np.ndarray, params: _Params) -> tuple[np.ndarray, float]:
    """Divides low frequencies by the factor, keeps high ones, and blends those in between."""
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    waves = params["original_max_position_embeddings"] * omega / (2 * math.pi)
    keep = np.clip((waves - low) / (high - low), 0, 1)
    return omega * (keep + (1 - keep) / params["factor"]), 1.0


def _yarn(omega: np.ndarray, params: _Params) -> tuple[np.ndarray, float]:
    """As llama3, but the blend is linear in the pair's index and cos and sin are scaled."""
    factor, size = params["factor"], 2 * len(omega)

    def index_of(rotations: float) -> float:
        """Returns the index of the pair with this number of rotations in the original length."""
        waves = params["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return size * math.log(waves) / (2 * math.log(params["rope_theta"]))

    low, high = index_of(params["beta_fast"]), index_of(params["beta_slow"])
    if params["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    stretch = np.clip((np.arange(len(omega)) - low) / ((high - low) or 0.001), 0, 1)
    return omega * (1 - stretch + stretch / factor), _yarn_scale(factor, params)


def _yarn_scale(factor: float, params: _Params) -> float:
    """Returns the factor of cos and sin: the config's, or ``0.1·log(factor) + 1``."""
    if params["attention_factor"] is not None:
        return float(params["attention_factor"])

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if params["mscale"] and params["mscale_all_dim"]:
        return scale(params["mscale"]) / scale(params["mscale_all_dim"])
    return scale(1.0)


# For each scaling: the required fields, the optional fields with their defaults, and the formula.
_SCALINGS: dict[str, tuple[tuple[str, ...], dict[str, Any], _Scaling]] = {
    "default": ((), {}, _default),
    "linear": (("factor",), {}, _linear),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        {},
        _llama3,
    ),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        {
            "attention_factor": None,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": None,
            "mscale_all_dim": None,
            "truncate": True,
        },
        _yarn,
    ),
}
