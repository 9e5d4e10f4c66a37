"""A tree's own layout: each layer of a stack is a site, and heads are rows or columns."""

import re
from collections.abc import Iterator

from jaxmix.placement.layout import NAMES, Layout, Rule
from jaxmix.placement.roles import Role, Roles, depth
from jaxmix.placement.stacks import Stack

__all__ = ["own_layout"]


def own_layout(roles: Roles) -> Layout | None:
    """Returns a layout by the tree's own names, in which each layer of a stack is a site.

    Args:
        roles: The roles of the tree's weights.

    Returns:
        The layout; None if the names are sufficient. A weight ``layers.up.kernel`` of
        stacked layers holds the sites ``layers.0.up``, ``layers.1.up``, ….
    """
    special = [
        role
        for role in roles.by_leaf.values()
        if not role.is_plain and (role.stack or role.is_matrix) and role.kind != "unclear"
    ]
    if not special:
        return None
    rules: list[Rule] = []
    for role in special:
        site, index = _numbered(role.site, role.leaf, role.stack)
        rules.append(Rule(site, role.leaf, _axes(role), index))
        rules += _bias_rules(roles, role, site)
    # A module with a rule of its own does not match the general rules.
    names = "|".join(dict.fromkeys(re.escape(role.site) for role in special if not role.stack))
    other_sites = rf"(?!(?:{names})$)(.+)" if names else r"(.+)"
    general = [Rule(other_sites, r.leaf, r.axes, r.index, r.part) for r in NAMES.rules]
    return Layout("the tree's own", (*rules, *general), by_name=True)


def _bias_rules(roles: Roles, role: Role, site: str) -> Iterator[Rule]:
    """The rule for the bias of a weight."""
    module = role.leaf.rpartition(".")[0]
    for name in (f"{module}.bias", f"{module}.b"):
        if name not in roles.shapes:
            continue
        stack = roles.stacks.get(name, ())
        if len(stack) != len(role.stack):
            continue
        _, index = _numbered(role.site, name, stack)
        count = len(roles.shapes[name]) - len(stack)
        letters = " ".join(f"b{i}" for i in range(count))
        yield Rule(site, name, f"{letters} -> ({letters})" if count > 1 else None, index, "bias")


def _numbered(site: str, leaf: str, stack: tuple[Stack, ...]) -> tuple[str, str | None]:
    """The expression for a module's sites, and the index made of their numbers."""
    if not stack:
        return re.escape(site), None
    # A number follows the name of the stacked module; of two there, the outer stack's comes first.
    parts = site.split(".") if site else []
    order = sorted(range(len(stack)), key=lambda k: (depth(stack[k].root), k))
    text: list[str] = []
    for level in range(len(parts) + 1):
        text += [r"(\d+)" for k in order if depth(stack[k].root) == level]
        text += [re.escape(part) for part in parts[level : level + 1]]
    groups = {stack[k].axis: rf"\{number}" for number, k in enumerate(order, 1)}
    last = max(groups)
    return r"\.".join(text), ", ".join(groups.get(axis, ":") for axis in range(last + 1))


def _axes(role: Role) -> str | None:
    """The pattern from the leaf's axes, after the index, to PyTorch's."""
    if not role.is_matrix:
        stacked = [layers.axis for layers in role.stack]
        left = len(role.shape) - len(stacked)
        return "... i o -> o i ..." if role.leaf.endswith(".kernel") and left > 2 else None
    kept = sorted((*role.rows, *role.cols))
    if (*role.rows, *role.cols) == tuple(kept) and len(role.rows) == len(role.cols) == 1:
        return None
    names = {axis: f"x{i}" for i, axis in enumerate(kept)}
    sides = [" ".join(names[axis] for axis in side) for side in (role.rows, role.cols)]
    rows, cols = (f"({side})" if " " in side else side for side in sides)
    return f"{' '.join(names.values())} -> {rows} {cols}"
