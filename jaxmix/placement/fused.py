"""Updates of fused weights that can't be cut, for trees that hold the parts of these weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxmix.errors import LayoutError
from jaxmix.families.base import Update
from jaxmix.families.part_of import PartOf
from jaxmix.placement.canonical import Target, UnmappedError

__all__ = ["UncutError", "in_order", "parts_together"]


class UncutError(UnmappedError):
    """An update that mixes numbers of several weights; the message is the reason."""


def parts_together(
    update: Update, targets: Sequence[Target], error: UncutError
) -> list[tuple[Target, Update]]:
    """Returns the targets of an update that can't be cut, each with a `PartOf` of the update.

    Args:
        update: The update of the fused weight.
        targets: The weights that the tree has instead.
        error: The error to raise if they are not runs of rows of the fused weight.

    Raises:
        UncutError: The given error.
    """
    targets = sorted(targets, key=lambda target: target.cut.part)
    numbers = [target.cut.part for target in targets if target.cut.axis == 0]
    is_stack = any(target.cut.expert >= 0 for target in targets)
    if is_stack or len(targets) < 2 or numbers != list(range(targets[0].cut.parts)):
        raise error
    ranges = []
    for target in targets:
        total = sum(target.siblings)
        rows = replace(target.cut, sizes=target.siblings, is_ratio=False).rows(total)
        assert rows is not None
        ranges.append((rows.start, rows.stop if rows.step is None else total, rows.step or 1))
    names = tuple(target.site for target in targets)
    return [(t, PartOf(update, names, tuple(ranges), i)) for i, t in enumerate(targets)]


def in_order(by_adapter: Sequence[Mapping[str, Update]]) -> list[dict[str, Update]]:
    """Makes every update a `PartOf` at sites where that of one adapter is a `PartOf`.

    Args:
        by_adapter: The updates of each adapter by site, in order of application.

    Returns:
        The same; at these sites each update is a `PartOf` with its adapter's position.

    Raises:
        LayoutError: If two such updates overlap without being of the same fused weight.
    """
    groups: dict[str, PartOf] = {}
    for updates in by_adapter:
        for site, update in updates.items():
            if isinstance(update, PartOf):
                other = groups.setdefault(site, update)
                if other.names != update.names:
                    raise LayoutError(
                        f"{site}: one update is applied to {' and '.join(other.names)} together, "
                        f"another to {' and '.join(update.names)}, and neither can be cut. Merge "
                        "these adapters one after the other."
                    )
    return [
        {site: _positioned(site, update, groups, order) for site, update in updates.items()}
        for order, updates in enumerate(by_adapter)
    ]


def _positioned(site: str, update: Update, groups: Mapping[str, PartOf], order: int) -> Update:
    """An update with its adapter's position, if others need all parts of its fused weight."""
    if isinstance(update, PartOf):
        return replace(update, order=order)
    if site not in groups:
        return update
    return replace(groups[site], update=update, is_whole=False, order=order)
