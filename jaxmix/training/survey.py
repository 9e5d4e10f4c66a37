"""Which modules a tree has: by its own names, or by the layout of a model library."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxmix.errors import LayoutError, listing
from jaxmix.placement.choosing import library
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import NAMES, Layout
from jaxmix.placement.own import own_layout
from jaxmix.placement.roles import Role, Roles
from jaxmix.placement.tree import Tree
from jaxmix.training.modules import Target, is_head, modules_of, target

__all__ = ["Survey", "survey"]

_HEAD = re.compile(r"head|logit|output|unembed|vocab|decoder|lm")


@dataclass(frozen=True)
class Survey:
    """The modules of a tree.

    Args:
        tree: the tree.
        table: the layout by which they are found.
        modules: their names, each with its name without the numbers of stacked layers.
        roles: what the tree itself tells of each weight, by the name of its leaf.
        rivals: other layouts that find as much.
    """

    tree: Tree
    table: Layout
    modules: Mapping[str, str]
    roles: Mapping[str, Role]
    rivals: tuple[Layout, ...] = ()

    def target(self, module: str) -> Target | None:
        """The module of a name, or None if it has no weight."""
        return target(self.tree, self.table, module, self.roles)

    def is_linear(self, found: Target) -> bool:
        """Whether PEFT's ``all-linear`` takes a module, if it is no head."""
        if found.layer not in ("linear", "conv1d"):
            return False
        return not self.table.by_name or self.roles[found.place.leaf].kind == "linear"

    def is_head(self, found: Target) -> bool:
        """Whether a linear layer is the head of a language model: by its name, or by its size.

        By its size it leads from the width of an embedding to the size of its vocabulary.
        """
        if is_head(found.site):
            return True
        is_inner = any(part.isdigit() for part in found.site.split("."))
        last = found.site.rpartition(".")[2].lower()
        if is_inner or found.shape not in self._tables or not _HEAD.search(last):
            return False
        return found.layer == "linear"

    @cached_property
    def _tables(self) -> set[tuple[int, ...]]:
        """The shapes of the tree's embeddings."""
        return {role.shape for role in self.roles.values() if role.kind == "embedding"}

    def unclear(self, found: Mapping[str, Target]) -> dict[str, Role]:
        """The weights that may be linear layers, though neither tree nor layout tells, by site.

        Args:
            found: the modules of the tree.
        """
        unknown = ("unclear", "parameter")
        held = {each.place.leaf for each in found.values() if each.layer not in unknown}
        kinds = ("unclear",) if self.table.by_name else ("unclear", "linear")
        return {
            role.site: role
            for leaf, role in self.roles.items()
            if role.kind in kinds and leaf not in held
        }

    def disagreement(self, sites: Mapping[str, Target]) -> LayoutError | None:
        """The error for sites that another layout reads otherwise, or None."""
        for rival in self.rivals:
            for site, each in sites.items():
                other = target(self.tree, rival, site)
                shape = tuple(each.leaf.shape)
                if other is None or not each.place.same(other.place, shape):
                    names = [self.table.name, *(one.name for one in self.rivals)]
                    how = " or ".join(f"layout={name!r}" for name in names)
                    return LayoutError(
                        "several layouts fit the params and read leaves in different ways:"
                        f"{listing([f'{site}: {self.table.name!r} and {rival.name!r}'])}\n"
                        f"Say which it is: {how}."
                    )
        return None


def survey(tree: Tree, layout: Layout | None) -> Survey:
    """The modules of a tree.

    Args:
        tree: the tree.
        layout: the layout to find them by; None to look for one that fits.

    Returns:
        The modules. The layout is one of a model library if the leaves have its names, and else
        the tree's own.
    """
    roles = Roles(tree)
    rivals: tuple[Layout, ...] = ()
    if layout is None:
        found = library(roles.shapes)
        layout, *rest = found or (own_layout(roles) or NAMES,)
        rivals = tuple(rest)
    if not layout.by_name:
        modules = {site: site for site in sites_of(layout, roles.shapes)}
        return Survey(tree, layout, _with_parents(modules), roles.by_leaf, rivals)
    stacked = {leaf: role for leaf, role in roles.by_leaf.items() if role.stack or role.is_matrix}
    modules: dict[str, str] = {}
    for module in modules_of(tree):
        modules[module] = module
    for role in stacked.values():
        if layout.name != "the tree's own" or role.is_plain:
            continue
        leaf = role.leaf.removeprefix("params.")
        for name in (role.site, leaf, leaf.rpartition(".")[0]):
            modules.pop(name, None)
        modules.update(role.sites)
    return Survey(tree, layout, _with_parents(modules), roles.by_leaf)


def _with_parents(modules: Mapping[str, str]) -> dict[str, str]:
    """The modules, and those that hold them, but for a stack of modules itself."""
    found: dict[str, str] = {}
    aliases = {alias for module, alias in modules.items() if alias != module}
    for module, alias in modules.items():
        parts = module.split(".")
        for end in range(1, len(parts)):
            above = ".".join(parts[:end])
            if above not in aliases:
                found.setdefault(above, above)
        found[module] = alias
    return found
