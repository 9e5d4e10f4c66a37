"""Which modules of a tree an adapter is for, and what is said where that can't be told."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxmix.errors import AdapterError, LayoutError, UnsupportedError, listing
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.tree import Tree
from jaxmix.training.kinds import Kind
from jaxmix.training.modules import Target, is_head
from jaxmix.training.survey import Survey, survey
from jaxmix.training.targets import Rules, is_named

__all__ = ["surveyed", "targets_of"]


def targets_of(
    kind: str, known: Kind, found: Survey, rules: Rules, parameters: Sequence[str] | None
) -> dict[str, Target]:
    """The modules that are to have an adapter, in the tree's order."""
    modules, asked = list(found.modules), rules.target_modules
    targets: dict[str, Target | None] = {}
    if isinstance(asked, str) and asked.lower() == "all-linear":
        targets.update(_all_linear(found, rules))
    elif asked:
        targets = {one: found.target(one) for one in _chosen(found, rules)}
    elif not parameters:
        raise AdapterError(
            f"target_modules is {asked!r}, expected names, a regular expression or 'all-linear'. "
            "PEFT has names for models that it knows, but a tree of weights is of no model. "
            f"Its modules are:{listing(modules)}"
        )
    if lost := [one for one in parameters or () if not any(is_named(m, [one]) for m in modules)]:
        raise _unmatched([f"target_parameters: {name!r}" for name in lost], modules)
    for one in parameters or ():
        targets.update({m: found.target(m) for m in modules if is_named(m, [one])})
    if not targets:
        raise AdapterError(
            f"no module of the params is one of target_modules {_told(asked)}. Its modules are:"
            f"{listing(modules)}"
        )
    if unclear := {s: one for s, one in targets.items() if one and one.layer == "unclear"}:
        raise _unclear({site: one.leaf.shape for site, one in unclear.items()})
    wrong = [f"{site}: {_what(one)}" for site, one in targets.items() if not _fits(known, one)]
    if wrong:
        raise UnsupportedError(
            f"modules that can't have {kind}, which is for {', '.join(known.layers)}:"
            f"{listing(wrong)}\nName others, or leave these out with exclude_modules."
        )
    fit = {site: one for site, one in targets.items() if one is not None}
    if error := found.disagreement(fit):
        raise error
    return fit


def _all_linear(found: Survey, rules: Rules) -> dict[str, Target]:
    """The linear layers but for the head, as PEFT finds them; what can't be judged is listed."""
    every = {m: one for m in found.modules if (one := found.target(m)) is not None}
    heads = {m for m, one in every.items() if found.is_head(one)}
    left_out = heads | {m for m, alias in found.modules.items() if rules.excludes(m, alias)}
    unclear = {
        site: role.shape
        for site, role in found.unclear(every).items()
        if not rules.excludes(site) and not is_head(site)
    }
    if unclear:
        raise _unclear(unclear)
    return {m: one for m, one in every.items() if m not in left_out and found.is_linear(one)}


def _unclear(shapes: Mapping[str, tuple[int, ...]]) -> LayoutError:
    """The error for weights of which nothing tells what they are."""
    lines = [f"{site}: {tuple(shape)}" for site, shape in shapes.items()]
    return LayoutError(
        "weights that may be linear layers, but neither names, classes nor biases tell which of "
        f"their axes are inputs, outputs or layers:{listing(lines)}\nGive the nnx or Equinox "
        "module itself, layout=jaxmix.Layout(…) with a rule for each (layout='flax' where they are "
        "convolutions), or leave them out with exclude_modules."
    )


def surveyed(tree: Tree, layout: Layout | str | None, rules: Rules) -> Survey:
    """The modules of the tree; with a layout of your own those asked for too."""
    found = survey(tree, None if layout is None else named(layout))
    names = rules.target_modules
    if found.table.by_name or found.rivals or layout is None:
        return found
    given = [] if isinstance(names, str) else [n for n in names or () if found.target(n)]
    if not given and not found.modules:
        raise LayoutError(
            f"the layout {found.table.name!r} finds no module in the params by its rules, and "
            f"target_modules is {names!r}. Give a list of modules by their whole paths."
        )
    return replace(found, modules={**found.modules, **{name: name for name in given}})


def _chosen(found: Survey, rules: Rules) -> list[str]:
    """The modules that the rules choose; every name has to be somebody's."""
    modules = found.modules
    try:
        chosen = [module for module, alias in modules.items() if rules.takes(module, alias)]
        left_out = [module for module, alias in modules.items() if rules.excludes(module, alias)]
    except re.error as error:
        raise AdapterError(
            "target_modules, exclude_modules, layers_pattern or modules_to_save is no regular "
            f"expression: {error}. A list is of names, a text is an expression for whole paths."
        ) from error
    lost = [
        f"{word}: {name!r}"
        for word, names in (
            ("target_modules", rules.target_modules),
            ("exclude_modules", rules.exclude_modules),
        )
        if not isinstance(names, str)
        for name in names or ()
        if not any(is_named(m, [name]) or is_named(alias, [name]) for m, alias in modules.items())
    ]
    if isinstance(rules.exclude_modules, str) and not left_out:
        lost.append(f"exclude_modules: {rules.exclude_modules!r}")
    if lost:
        raise _unmatched(lost, list(modules))
    return chosen


def _unmatched(names: Sequence[str], modules: Sequence[str]) -> AdapterError:
    """The error for names that no module has."""
    return AdapterError(
        f"names that no module of the params has:{listing(names)}\nIts modules are:"
        f"{listing(modules)}"
    )


def _fits(known: Kind, one: Target | None) -> bool:
    """Whether a kind is for such a module."""
    return one is not None and one.layer in known.layers


def _what(one: Target | None) -> str:
    """A module for people."""
    return "it has no weight of floats" if one is None else f"{one.layer} of shape {one.shape}"


def _told(asked: Any) -> str:
    return repr(asked if isinstance(asked, str) or asked is None else list(asked))
