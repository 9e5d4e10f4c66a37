"""`measure`: what each adapter of a mix changes at each site, and how they lie to each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxmix.adapter import Adapter
from jaxmix.effects import Effect, effects
from jaxmix.measures.formulas import (
    Matrix,
    effective_rank,
    inner,
    on_host,
    overlap,
    principal_angles,
    shares,
    sign_agreement,
    singular_on_host,
)
from jaxmix.mixing import Mix, mix
from jaxmix.placement.layout import Layout

__all__ = ["Measures", "OfPair", "OfSite", "measure"]

# The share of an effect's energy that its leading directions hold.
_ENERGY = 0.9


@dataclass(frozen=True)
class OfSite:
    """What one adapter changes at one site.

    Args:
        norm: ``‖Δ‖``, Frobenius, of the adapter alone on the base.
        rank: the effective rank of Δ.
        share: its share in the mix: ``⟨Wᵢ − Wᵢ₋₁, W' − W⟩ / ‖W' − W‖²``, with Wᵢ the weight after
            it. The shares of all adapters at a site are 1 together; one below 0 works against the
            mix.
    """

    norm: float
    rank: float
    share: float


@dataclass(frozen=True)
class OfPair:
    """How the effects of two adapters lie to each other at one site.

    Args:
        cosine: ``⟨Δ₁, Δ₂⟩ / ‖Δ₁‖‖Δ₂‖``; below 0 they work against each other.
        signs: the share of entries with equal signs, of those where both are not 0; 0.5 is chance.
            None where there is no such entry.
        outputs: `overlap` of the leading column spaces: what they write to.
        inputs: `overlap` of the leading row spaces: what they read.
        output_angle: the smallest principal angle of the column spaces, in degrees.
        input_angle: the same of the row spaces.
    """

    cosine: float
    signs: float | None
    outputs: float
    inputs: float
    output_angle: float
    input_angle: float


@dataclass(frozen=True)
class Measures:
    """What `measure` found.

    Args:
        sites: ``{adapter: {site: OfSite}}``, at the sites whose weight it changes.
        pairs: ``{(adapter, adapter): {site: OfPair}}``, at the sites that both change.
        energies: ``{site: ‖W' − W‖²}`` of the whole mix.
    """

    sites: dict[str, dict[str, OfSite]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[str, OfPair]] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)

    def norm(self, name: str) -> float:
        """``‖Δ‖`` of an adapter over all of its sites."""
        return sum(one.norm**2 for one in self.sites[name].values()) ** 0.5

    def share(self, name: str) -> float:
        """An adapter's share in the mix over all sites."""
        whole = sum(self.energies.values())
        part = sum(one.share * self.energies[site] for site, one in self.sites[name].items())
        return part / whole if whole else 0.0


def measure(
    mixed: Adapter | Mix,
    params: Any,
    *,
    layout: Layout | str | None = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Measures:
    """Measures the adapters of a mix, site by site; each at its strength.

    Effects of low rank are measured by QR of their factors and the SVD of the small core between
    them; others by the SVD of Δ itself.

    Args:
        mixed: the adapter or the mix.
        params: the base, any pytree of weights.
        layout: where its sites lie, as in `jaxmix.compose`.
        progress: called after each site with how many are done, and how many there are.

    Returns:
        The measures. Changes of biases are left aside.

    Raises:
        LayoutError: as `jaxmix.compose`.
        ShapeError: as `jaxmix.compose`.

    Example:
        >>> from jaxmix.families import LoRA
        >>> lora = Adapter({"proj": LoRA(np.ones((1, 2)), np.ones((3, 1)), 2.0)}, name="lora")
        >>> measures = measure(0.5 * lora, {"proj.weight": np.zeros((3, 2), np.float32)})
        >>> found = measures.sites["lora"]["proj"]
        >>> round(found.norm**2, 3), round(found.rank, 3), round(found.share, 3)
        (6.0, 1.0, 1.0)

    Source: Roy and Vetterli, 2007 (effective rank); Björck and Golub, 1973 (principal angles).
    """
    parts = mixed.parts
    found = Measures(
        {part.name: {} for part in parts},
        {(a.name, b.name): {} for a, b in combinations(parts, 2)},
    )
    # Each alone; and each with all before it, which is what shares are taken of.
    groups = [*parts, *(mix(*parts[: i + 1]) for i in range(1, len(parts)))]
    count = len({site for part in parts for site in part.sites})
    for done, (spot, each) in enumerate(effects(groups, params, layout), 1):
        alone = each[: len(parts)]
        if alone[0].weight is not None:
            _at_site(found, spot.name, parts, alone, (alone[0], *each[len(parts) :]))
        progress(done, count)
    return found


def _at_site(
    found: Measures,
    site: str,
    parts: Sequence[Adapter],
    alone: Sequence[Effect],
    so_far: Sequence[Effect],
) -> None:
    """Adds what there is to say of a site."""
    steps = [_matrix(effect) for effect in so_far]
    each = shares(steps)
    found.energies[site] = inner(steps[-1], steps[-1])
    own: dict[str, _Directions] = {}
    for part, effect, share in zip(parts, alone, each, strict=True):
        if site in part.updates and part.updates[site].has_weight:
            own[part.name] = here = _directions(effect)
            norm = float(np.linalg.norm(here.s))
            found.sites[part.name][site] = OfSite(norm, effective_rank(here.s), share)
    for a, b in combinations(own, 2):
        found.pairs[a, b][site] = _pair(own[a], own[b])


@dataclass(frozen=True)
class _Directions:
    """``Δ = U Σ Vᵀ`` without what is nought to rounding, and how many directions lead."""

    delta: Matrix
    u: Float[np.ndarray, "out r"]
    s: Float[np.ndarray, " r"]
    v: Float[np.ndarray, "in r"]
    leading: int


def _directions(effect: Effect) -> _Directions:
    """The singular directions of an effect."""
    delta = _matrix(effect)
    u, s, vt = singular_on_host(delta, effect.noise)
    held = np.cumsum(s**2)
    leading = 1 + int(np.sum(held < _ENERGY * held[-1]))
    return _Directions(delta, u, s, vt.T, min(leading, s.size))


def _matrix(effect: Effect) -> Matrix:
    """An effect's Δ, where it has one."""
    assert effect.weight is not None
    return on_host(effect.weight)


def _pair(a: _Directions, b: _Directions) -> OfPair:
    """How two effects lie to each other."""
    whole = float(np.linalg.norm(a.s)) * float(np.linalg.norm(b.s))
    columns, rows = (
        principal_angles(x[:, : a.leading], y[:, : b.leading]) for x, y in ((a.u, b.u), (a.v, b.v))
    )
    sizes, out_size, in_size = (a.leading, b.leading), len(a.u), len(a.v)
    return OfPair(
        inner(a.delta, b.delta) / whole if whole else 0.0,
        sign_agreement(a.delta, b.delta),
        overlap(columns, sizes, out_size),
        overlap(rows, sizes, in_size),
        float(np.rad2deg(columns[0])),
        float(np.rad2deg(rows[0])),
    )
