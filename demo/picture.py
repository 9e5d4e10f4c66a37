"""The demo's table as a picture."""

from collections.abc import Sequence
from pathlib import Path

from jaxmix.demo.measure import Row

__all__ = ["draw"]

# A sequential scale for gains, its zero white: what helps is blue, what harms is red.
_COLOURS = "RdBu"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws held-out loss by model and domain; the colour is the gain over the base.

    Args:
        rows: the base's row first.
        path: the PNG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    base, domains = rows[0].losses, list(rows[0].losses)
    gains = [[base[d] - row.losses[d] for d in domains] for row in rows]
    limit = max(abs(g) for line in gains for g in line) or 1.0
    figure, axes = plt.subplots(figsize=(7.5, 0.45 * len(rows) + 1.6), layout="constrained")
    image = axes.imshow(gains, cmap=_COLOURS, vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(rows):
        for x, domain in enumerate(domains):
            strong = abs(gains[y][x]) > 0.6 * limit
            axes.text(
                x, y, f"{row.losses[domain]:.3f}", ha="center", va="center",
                color="white" if strong else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, label="gain over the base, nats per byte", shrink=0.8)
    axes.set_title("Held-out loss in nats per byte: adapters and their mixes", pad=12)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, dpi=150, format="png")
    plt.close(figure)
    beside.replace(path)
