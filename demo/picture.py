"""Plots the demo's table."""

from collections.abc import Sequence
from pathlib import Path

from jaxmix.demo.measure import Row
from jaxmix.pictures import new_figure, save_picture

__all__ = ["draw"]

# A diverging colour map with white at zero: gains are blue, losses are red.
_COLOURS = "RdBu"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Plots held-out loss by model and domain, coloured by the gain over the base.

    Args:
        rows: The rows of the table, the base first.
        path: The PNG file to write.
    """
    base, domains = rows[0].losses, list(rows[0].losses)
    gains = [[base[d] - row.losses[d] for d in domains] for row in rows]
    limit = max(abs(g) for line in gains for g in line) or 1.0
    figure = new_figure(7.5, 0.45 * len(rows) + 1.6)
    axes = figure.subplots()
    image = axes.imshow(gains, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(rows):
        for x, domain in enumerate(domains):
            is_dark = abs(gains[y][x]) > 0.6 * limit
            axes.text(
                x, y, f"{row.losses[domain]:.3f}", ha="center", va="center",
                color="white" if is_dark else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, label="gain over the base, nats per byte", shrink=0.8)
    axes.set_title("Held-out loss in nats per byte: adapters and their mixes", pad=12)
    save_picture(figure, path)
