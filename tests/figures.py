"""Draws the figures of docs/mathematics.md from the library's own maps: docs/figures/*.svg.

``python -m tests.figures``, or ``make pages``. Colors differ in lightness too, so they can be
distinguished in print and with any color vision.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmix import families
from jaxmix.affine import AffineMap, Base
from jaxmix.families import Update
from jaxmix.pictures import pyplot

from .house.sources import ROOT

__all__ = ["FIGURES", "main"]

FIGURES = ROOT / "docs" / "figures"
OUT, IN = 12, 16
BLUE, ORANGE, GREY, INK = "#0B5394", "#D55E00", "#8A8A8A", "#222222"
# Fonts become paths and ids are fixed, so the files are the same on every machine and in every run.
_SETTINGS = {
    "font.size": 11,
    "svg.hashsalt": "jaxmix",
    "svg.fonttype": "path",
    "axes.edgecolor": GREY,
    "text.color": INK,
    "axes.labelcolor": INK,
}


def normal(*shape: int, scale: float = 1.0) -> jax.Array:
    """Returns numbers that depend on the shape alone."""
    return scale * jax.random.normal(jax.random.key(sum(shape)), shape)


def updates() -> Mapping[str, tuple[str, Update]]:
    """Returns an update of each of some families with its formula, for a weight (OUT, IN)."""
    low = dict(a=normal(2, IN), b=normal(OUT, 2))
    positions = jax.random.choice(jax.random.key(1), OUT * IN, (28,), replace=False)
    sparse = jnp.stack([positions // IN, positions % IN])
    return {
        "LoRA": ("W + γ·BA", families.LoRA(**low, scale=0.4)),
        "DoRA": (
            "c ⊙ (W + γ·BA)",
            families.LoRA(**low, scale=0.4, magnitude=3 + 2 * jnp.abs(normal(OUT))),
        ),
        "LoHa": (
            "W + γ·(B₁A₁)⊙(B₂A₂)",
            families.LoHa(low["b"], low["a"], normal(OUT, 3)[:, :2], normal(3, IN)[:2], 0.4),
        ),
        "LoKr": ("W + γ·X⊗Y", families.LoKr((normal(3, 4),), (normal(4, 4),), 0.5)),
        "SHiRA": ("W + S", families.SHiRA(normal(28), sparse)),
        "OFT": ("W·Rᵀ", families.OFT(normal(4, 6, scale=0.5))),
        "HRA": ("W·H₁H₂", families.HRA(normal(IN, 2))),
        "RoAd": ("R·W", families.RoAd(normal(OUT // 2), 1 + 0.2 * normal(OUT // 2), group=2)),
        "IA3": ("diag(l)·W", families.IA3(1 + 0.8 * normal(OUT))),
        "tokens": ("W, some rows new", families.Tokens(normal(2, IN), jnp.array([3, 8]))),
    }


def map_of(update: Update, weight: jax.Array, strength: float = 1.0) -> AffineMap:
    """Returns the map of an update at a weight, which is also the base."""
    shape = (weight.shape[0], weight.shape[1])
    return update.weight_map(Base(weight, shape), jnp.asarray(strength))


def draw_maps(plt: Any) -> Any:
    """Draws L, R and Δ of each family, computed by the library."""
    rows = updates()
    titles = ("L  (out, out)", "R  (in, in)", "Δ  (out, in)")
    figure, axes = plt.subplots(
        len(rows), 3, figsize=(7.4, 1.32 * len(rows)), width_ratios=(OUT, IN, IN)
    )
    image: Any = None
    for line, (name, (formula, update)) in zip(axes, rows.items(), strict=True):
        map_ = map_of(update, normal(OUT, IN))
        for axis, operator in zip(line, (map_.left, map_.right, map_.shift), strict=True):
            image = axis.imshow(np.asarray(operator.dense()), cmap="RdBu", vmin=-2, vmax=2)
            axis.set(xticks=[], yticks=[])
        # Where a map has no rotation or no shift, the picture is the identity or empty.
        line[0].text(
            -0.25, 0.62, name, transform=line[0].transAxes, ha="right", va="center", weight="bold"
        )
        line[0].text(-0.25, 0.36, formula, transform=line[0].transAxes, ha="right", va="center")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11, pad=8)
    figure.subplots_adjust(left=0.3, right=0.86, top=0.965, bottom=0.01, hspace=0.16, wspace=0.08)
    bar = figure.colorbar(image, cax=figure.add_axes((0.9, 0.35, 0.018, 0.3)), ticks=(-2, 0, 2))
    bar.outline.set_visible(False)
    return figure


def draw_paths(plt: Any) -> Any:
    """Draws a weight of two numbers: along a strength, and in both orders of two adapters."""
    start = jnp.array([[2.2, 0.3]])
    lora = families.LoRA(a=jnp.array([[-1.2, 0.1]]), b=jnp.ones((1, 1)), scale=1.0)
    oft = families.OFT(jnp.array([[0.55]]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.9), sharex=True, sharey=True)
    for update, colour, label in ((lora, BLUE, "LoRA: a line"), (oft, ORANGE, "OFT: an arc")):
        strengths = np.linspace(-0.5, 1.5, 41)
        path = np.array([map_of(update, start, s)(start)[0] for s in strengths])
        left.plot(*path.T, color=colour, lw=1.4, ls=(0, (4, 2)))
        left.plot(*path[10:31].T, color=colour, lw=3, label=label)
        for s, mark in ((0.5, "½"), (1.0, "1")):
            x, y = np.asarray(map_of(update, start, s)(start)[0])
            left.plot(x, y, "o", color=colour, ms=6)
            left.annotate(mark, (x, y), (8, 4), textcoords="offset points", color=colour)
    for axis in (left, right):
        axis.plot(*start[0], "o", color=INK, ms=8)
        axis.set(xlim=(-1.2, 3.0), ylim=(-1.0, 2.6), aspect="equal", xticks=[], yticks=[])
    left.annotate("W", start[0], (-20, -14), textcoords="offset points")
    left.set_title("Strengths from −½ to 1½", fontsize=11)
    left.legend(frameon=False, loc="lower left", fontsize=10)
    orders = (((lora, oft), BLUE, "LoRA, then OFT"), ((oft, lora), ORANGE, "OFT, then LoRA"))
    for chain, colour, label in orders:
        points = [start]
        for update in chain:
            points.append(map_of(update, start)(points[-1]))
        for tail, head in pairwise(points):
            right.annotate(
                "", head[0], tail[0], arrowprops=dict(arrowstyle="-|>", color=colour, lw=2)
            )
        right.annotate(
            label, points[-1][0], (0, 8), textcoords="offset points", color=colour, ha="center"
        )
    right.annotate("W", start[0], (8, -12), textcoords="offset points")
    right.set_title("Both orders of the two", fontsize=11)
    figure.tight_layout()
    return figure


def draw_product(plt: Any) -> Any:
    """Draws how an unmerged weight computes a product."""
    figure, axis = plt.subplots(figsize=(8.4, 2.3))
    axis.set(xlim=(0, 10.4), ylim=(-1.05, 1.25))
    axis.axis("off")
    boxes = (
        (0.4, 0.5, "x", GREY), (2.4, 0.5, "· R", ORANGE), (4.4, 0.5, "· Wᵀ", INK),
        (6.4, 0.5, "L ·", ORANGE), (8.2, 0.0, "+", GREY), (9.9, 0.0, "y", GREY),
        (4.4, -0.6, "· Δᵀ  =  (· Aᵀ) · Bᵀ", BLUE),
    )  # fmt: skip
    for x, y, text, colour in boxes:
        axis.text(
            x, y, text, ha="center", va="center", color=colour, fontsize=14,
            bbox=dict(boxstyle="round,pad=0.35", fc="white", ec=colour, lw=1.6),
        )  # fmt: skip
    arrows = (
        ((0.75, 0.5), (1.95, 0.5)), ((2.85, 0.5), (3.85, 0.5)), ((4.95, 0.5), (5.95, 0.5)),
        ((6.85, 0.45), (7.9, 0.08)), ((0.7, 0.3), (3.2, -0.52)), ((5.6, -0.55), (7.9, -0.08)),
        ((8.5, 0.0), (9.55, 0.0)),
    )  # fmt: skip
    for tail, head in arrows:
        axis.annotate("", head, tail, arrowprops=dict(arrowstyle="-|>", color=INK, lw=1.3))
    axis.text(4.4, 1.12, "the base's product, shared by all rows of a batch", ha="center")
    axis.text(4.4, -1.02, "small: the adapter's own", ha="center", color=BLUE)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.01)
    return figure


def main() -> None:
    """Writes the figures."""
    plt = pyplot()
    FIGURES.mkdir(exist_ok=True)
    with plt.rc_context(_SETTINGS):
        for name, draw in (("maps", draw_maps), ("paths", draw_paths), ("product", draw_product)):
            figure = draw(plt)
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
