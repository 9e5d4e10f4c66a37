"""LoRAs combined factor by factor: all A's become one A, all B's one B."""

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


# A LoRA, and what it is to be multiplied with beside its own scale.
Weighted = tuple[tuple[Any, Any], LoRA]


def have_factors(groups: Sequence[Mixable]) -> bool:
    """Whether all are single adapters made of LoRAs alone."""
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
    """One LoRA a site: ``A' = f(√|wᵢγᵢ|, ±Aᵢ)`` and ``B' = f(√|wᵢγᵢ|, Bᵢ)``.

    The sign of ``wᵢγᵢ`` goes to one factor (PEFT's A), so that their product has it once.

    Args:
        groups: adapters for which `have_factors`.
        weights: a weight for each.
        method: whose formula f is.
        options: of the method.
        key: of a random method.

    Returns:
        The LoRAs, of scale 1.

    Raises:
        AdapterError: if ranks at a site differ.
    """
    adapters: list[Adapter] = [group.parts[0] for group in groups]
    at: dict[str, list[Weighted]] = {}
    for weight, adapter in zip(weights, adapters, strict=True):
        for site, update in adapter.updates.items():
            assert isinstance(update, LoRA)
            at.setdefault(site, []).append(((weight, adapter.strength), update))
    ranks = {site: [update.a.shape[0] for _, update in here] for site, here in at.items()}
    if unequal := [f"{site}: {found}" for site, found in ranks.items() if len(set(found)) > 1]:
        raise AdapterError(
            f"the method {method.name!r} adds factors of LoRAs up, and these have different "
            f"ranks:{listing(unequal)}\nExpected equal ones. Choose {method.by_svd!r} or 'cat'."
        )
    return {
        site: _combined(here, method, options, None if key is None else site_key(key, site))
        for site, here in at.items()
    }


def _combined(here: list[Weighted], method: Method, options: Options, key: Array | None) -> LoRA:
    """The LoRA of one site."""
    dtype = common_dtype([update for _, update in here])
    scales = [jnp.asarray([*numbers, u.scale], dtype) for numbers, u in here]
    weights = jnp.prod(jnp.stack(scales), 1)
    signs, roots = jnp.where(weights < 0, -1, 1).astype(dtype), jnp.sqrt(jnp.abs(weights))
    a = jnp.stack([jnp.asarray(update.a, dtype) for _, update in here])
    b = jnp.stack([jnp.asarray(update.b, dtype) for _, update in here])
    first = here[0][1]
    # An embedding's A, in PEFT, is our B.
    a, b = (a, signs[:, None, None] * b) if first.embedding else (signs[:, None, None] * a, b)
    keys: Any = [None] * 3 if key is None else jax.random.split(key, 3)
    bias = None
    if any(update.bias is not None for _, update in here):
        none = jnp.zeros(b.shape[1], dtype)
        own = [none if u.bias is None else jnp.asarray(u.bias, dtype) for _, u in here]
        bias = method.formula(signs[:, None] * jnp.stack(own), jnp.abs(weights), options, keys[2])
    return LoRA(
        method.formula(a, roots, options, keys[0]),
        method.formula(b, roots, options, keys[1]),
        1.0,
        bias=bias,
        kernel=first.kernel,
        embedding=first.embedding,
        transposed=joint_flag(update.transposed for _, update in here),
    )
