"""Combines LoRAs factor by factor: all A become one A, all B become one B."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxmix.adapter import Adapter, Mixable
from jaxmix.combining.formulas import Options
from jaxmix.combining.methods import Method
from jaxmix.effects import common_dtype, is_plain
from jaxmix.errors import AdapterError, listing
from jaxmix.families import LoRA
from jaxmix.families.base import joint_flag
from jaxmix.low_rank import site_key

__all__ = ["combined_factors", "have_factors"]


# A LoRA and the factors that it is multiplied with in addition to its scale.
Weighted = tuple[tuple[Any, Any], LoRA]


def have_factors(groups: Sequence[Mixable]) -> bool:
    """Whether all are single adapters that consist of plain LoRAs."""
    updates = [update for g in groups for part in g.parts for update in part.updates.values()]
    return all(len(group.parts) == 1 for group in groups) and all(map(is_plain, updates))


@jax.default_matmul_precision("highest")
def combined_factors(
    groups: Sequence[Mixable],
    weights: Sequence[Any],
    method: Method,
    options: Options,
    key: Array | None,
) -> dict[str, LoRA]:
    """Combines LoRAs at each site: ``A' = f(√|wᵢγᵢ|, ±Aᵢ)`` and ``B' = f(√|wᵢγᵢ|, Bᵢ)``.

    The sign of ``wᵢγᵢ`` is applied to one factor only, PEFT's A.

    Args:
        groups: Adapters for which `have_factors` is true.
        weights: A weight for each adapter.
        method: The method with the formula f.
        options: The options of the method.
        key: The key of a random method.

    Returns:
        A LoRA of scale 1 for each site.

    Raises:
        AdapterError: If ranks at a site differ.
    """
    adapters: list[Adapter] = [group.parts[0] for group in groups]
    by_site: dict[str, list[Weighted]] = {}
    for weight, adapter in zip(weights, adapters, strict=True):
        for site, update in adapter.updates.items():
            assert isinstance(update, LoRA)
            by_site.setdefault(site, []).append(((weight, adapter.strength), update))
    ranks = {site: [update.a.shape[0] for _, update in loras] for site, loras in by_site.items()}
    if unequal := [f"{site}: {values}" for site, values in ranks.items() if len(set(values)) > 1]:
        raise AdapterError(
            f"the method {method.name!r} adds the factors of LoRAs, but these have different ranks:"
            f"{listing(unequal)}\nExpected equal ranks. Use {method.by_svd!r} or 'cat' instead."
        )
    return {
        site: _combined(loras, method, options, None if key is None else site_key(key, site))
        for site, loras in by_site.items()
    }


def _combined(loras: list[Weighted], method: Method, options: Options, key: Array | None) -> LoRA:
    """Combines the LoRAs of one site."""
    dtype = common_dtype([update for _, update in loras])
    scales = [jnp.asarray([*factors, u.scale], dtype) for factors, u in loras]
    weights = jnp.prod(jnp.stack(scales), 1)
    signs, roots = jnp.where(weights < 0, -1, 1).astype(dtype), jnp.sqrt(jnp.abs(weights))
    a = jnp.stack([jnp.asarray(update.a, dtype) for _, update in loras])
    b = jnp.stack([jnp.asarray(update.b, dtype) for _, update in loras])
    first = loras[0][1]
    # For an embedding, PEFT's A is B here.
    a, b = (a, signs[:, None, None] * b) if first.embedding else (signs[:, None, None] * a, b)
    keys: Any = [None] * 3 if key is None else jax.random.split(key, 3)
    bias = None
    if any(update.bias is not None for _, update in loras):
        zeros = jnp.zeros(b.shape[1], dtype)
        biases = [zeros if u.bias is None else jnp.asarray(u.bias, dtype) for _, u in loras]
        bias = method.formula(
            signs[:, None] * jnp.stack(biases), jnp.abs(weights), options, keys[2]
        )
    return LoRA(
        method.formula(a, roots, options, keys[0]),
        method.formula(b, roots, options, keys[1]),
        1.0,
        bias=bias,
        kernel=first.kernel,
        embedding=first.embedding,
        transposed=joint_flag(update.transposed for _, update in loras),
    )
