"""Finds the modules of a tree, by its own names or by the layout of a model library."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxmix.errors import LayoutError, listing
from jaxmix.placement.choosing import library
from jaxmix.placement.inverse import sites_of
from jaxmix.placement.layout import NAMES, Layout
from jaxmix.placement.roles import Role, Roles
from jaxmix.placement.tree import Tree
from jaxmix.placement.tree_layout import own_layout
from jaxmix.training.modules import Target, is_head, modules_of, target

__all__ = ["Survey", "survey"]

_HEAD = re.compile(r"head|logit|output|unembed|vocab|decoder|lm")


@dataclass(frozen=True)
class Survey:
    """The modules of a tree.

    Args:
        tree: The tree.
        table: The layout by which the modules were found.
        modules: The names of the modules, each with its name without the indices of stacked layers.
        roles: The role of each weight according to the tree, by the name of its leaf.
        rivals: Other layouts that fit equally well.
    """

    tree: Tree
    table: Layout
    modules: Mapping[str, str]
    roles: Mapping[str, Role]
    rivals: tuple[Layout, ...] = ()

    def target(self, module: str) -> Target | None:
        """Returns a module by its name, or None if it has no weight."""
        return target(self.tree, self.table, module, self.roles)

    def is_linear(self, module: Target) -> bool:
        """Whether PEFT's ``all-linear`` targets a module, unless it is a head."""
        if module.layer not in ("linear", "conv1d"):
            return False
        return not self.table.by_name or self.roles[module.place.leaf].kind == "linear"

    def is_head(self, module: Target) -> bool:
        """Whether a linear layer is the head of a language model, by its name or its shape.

        A head has the shape of an embedding: it maps the embedding's width to its vocabulary.
        """
        if is_head(module.site):
            return True
        is_inner = any(part.isdigit() for part in module.site.split("."))
        last = module.site.rpartition(".")[2].lower()
        if is_inner or module.shape not in self._tables or not _HEAD.search(last):
            return False
        return module.layer == "linear"

    @cached_property
    def _tables(self) -> set[tuple[int, ...]]:
        """The shapes of the tree's embeddings."""
        return {role.shape for role in self.roles.values() if role.kind == "embedding"}

    def unclear(self, modules: Mapping[str, Target]) -> dict[str, Role]:
        """Returns the weights, by site, that may be linear layers but can't be classified.

        Args:
            modules: The modules of the tree.
        """
        unknown = ("unclear", "parameter")
        held = {module.place.leaf for module in modules.values() if module.layer not in unknown}
        kinds = ("unclear",) if self.table.by_name else ("unclear", "linear")
        return {
            role.site: role
            for leaf, role in self.roles.items()
            if role.kind in kinds and leaf not in held
        }

    def disagreement(self, sites: Mapping[str, Target]) -> LayoutError | None:
        """Returns the error for sites that another fitting layout reads differently, or None."""
        for rival in self.rivals:
            for site, module in sites.items():
                other = target(self.tree, rival, site)
                shape = tuple(module.leaf.shape)
                if other is None or not module.place.same(other.place, shape):
                    names = [self.table.name, *(layout.name for layout in self.rivals)]
                    choices = " or ".join(f"layout={name!r}" for name in names)
                    return LayoutError(
                        "several layouts fit the params and read leaves in different ways:"
                        f"{listing([f'{site}: {self.table.name!r} and {rival.name!r}'])}\n"
                        f"Pass {choices}."
                    )
        return None


def survey(tree: Tree, layout: Layout | None) -> Survey:
    """Finds the modules of a tree.

    Args:
        tree: The tree.
        layout: The layout; None to look for one that fits.

    Returns:
        The modules. Without a layout, that of a model library is used if the leaves have its names;
        otherwise modules have the tree's own names.
    """
    roles = Roles(tree)
    rivals: tuple[Layout, ...] = ()
    if layout is None:
        fitting = library(roles.shapes)
        layout, *others = fitting or (own_layout(roles) or NAMES,)
        rivals = tuple(others)
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
    """Adds the parents of the modules, except stacks of modules."""
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
