"""Chooses the modules of a tree that an adapter targets, or reports why it can't."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxmix.errors import AdapterError, LayoutError, UnsupportedError, listing
from jaxmix.placement.layout import Layout, named
from jaxmix.placement.tree import Tree
from jaxmix.training.initializers import Initializer
from jaxmix.training.modules import Target, is_head
from jaxmix.training.survey import Survey, survey
from jaxmix.training.targets import Rules, is_named

__all__ = ["choose_targets", "survey_with_rules"]


def choose_targets(
    kind: str,
    initializer: Initializer,
    surveyed: Survey,
    rules: Rules,
    parameters: Sequence[str] | None,
) -> dict[str, Target]:
    """Returns the modules that get an adapter, in the tree's order.

    Args:
        kind: The kind of adapter, for messages.
        initializer: The initializer of the kind.
        surveyed: The modules of the tree.
        rules: The targets and exclusions.
        parameters: The names of leaves of experts.

    Raises:
        AdapterError: If no module is targeted, or a name matches no module.
        LayoutError: If the axes of a targeted weight can't be determined.
        UnsupportedError: If a targeted module does not support the kind.
    """
    modules, wanted = list(surveyed.modules), rules.target_modules
    targets: dict[str, Target | None] = {}
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        targets.update(_all_linear(surveyed, rules))
    elif wanted:
        targets = {module: surveyed.target(module) for module in _named_modules(surveyed, rules)}
    elif not parameters:
        raise AdapterError(
            f"target_modules is {wanted!r}, expected names, a regular expression or 'all-linear'. "
            "PEFT has defaults for models that it knows, but a tree of weights does not say which "
            f"model it is. Its modules are:{listing(modules)}"
        )
    unmatched = [name for name in parameters or () if not any(is_named(m, [name]) for m in modules)]
    if unmatched:
        raise _unmatched([f"target_parameters: {name!r}" for name in unmatched], modules)
    for name in parameters or ():
        targets.update({m: surveyed.target(m) for m in modules if is_named(m, [name])})
    if not targets:
        raise AdapterError(
            f"target_modules {_shown(wanted)} matches no module of the params. Its modules are:"
            f"{listing(modules)}"
        )
    if unclear := {s: target for s, target in targets.items() if target and _is_unclear(target)}:
        raise _unclear({site: target.leaf.shape for site, target in unclear.items()})
    wrong = [
        f"{site}: {_described(target)}"
        for site, target in targets.items()
        if target is None or target.layer not in initializer.layers
    ]
    if wrong:
        raise UnsupportedError(
            f"{kind} supports only {', '.join(initializer.layers)} modules, but the targets "
            f"include:{listing(wrong)}\nName others, or leave these out with exclude_modules."
        )
    fit = {site: target for site, target in targets.items() if target is not None}
    if error := surveyed.disagreement(fit):
        raise error
    return fit


def _all_linear(surveyed: Survey, rules: Rules) -> dict[str, Target]:
    """Returns the linear layers except the head, as PEFT does; raises if a weight is unclear."""
    targets = {m: target for m in surveyed.modules if (target := surveyed.target(m)) is not None}
    heads = {m for m, target in targets.items() if surveyed.is_head(target)}
    left_out = heads | {m for m, alias in surveyed.modules.items() if rules.excludes(m, alias)}
    unclear = {
        site: role.shape
        for site, role in surveyed.unclear(targets).items()
        if not rules.excludes(site) and not is_head(site)
    }
    if unclear:
        raise _unclear(unclear)
    return {m: x for m, x in targets.items() if m not in left_out and surveyed.is_linear(x)}


def _is_unclear(target: Target) -> bool:
    """Whether the order of a weight's axes is unknown."""
    return target.layer == "unclear"


def _unclear(shapes: Mapping[str, tuple[int, ...]]) -> LayoutError:
    """Returns the error for weights whose axes can't be determined."""
    lines = [f"{site}: {tuple(shape)}" for site, shape in shapes.items()]
    return LayoutError(
        "weights that may be linear layers, but neither names, classes nor biases show which of "
        f"their axes are inputs, outputs or layers:{listing(lines)}\nPass the nnx or Equinox "
        "module itself, pass layout=jaxmix.Layout(…) with a rule for each (layout='flax' for "
        "convolutions), or leave them out with exclude_modules."
    )


def survey_with_rules(tree: Tree, layout: Layout | str | None, rules: Rules) -> Survey:
    """Surveys the modules of the tree; a custom layout includes targets given by full paths."""
    surveyed = survey(tree, None if layout is None else named(layout))
    names = rules.target_modules
    if surveyed.table.by_name or surveyed.rivals or layout is None:
        return surveyed
    full_paths = [] if isinstance(names, str) else [n for n in names or () if surveyed.target(n)]
    if not full_paths and not surveyed.modules:
        raise LayoutError(
            f"the layout {surveyed.table.name!r} matches no module of the params, and "
            f"target_modules is {names!r}. Pass a list of modules by their full paths."
        )
    return replace(surveyed, modules={**surveyed.modules, **{name: name for name in full_paths}})


def _named_modules(surveyed: Survey, rules: Rules) -> list[str]:
    """Returns the modules that the rules target; raises if a name matches no module."""
    modules = surveyed.modules
    try:
        chosen = [module for module, alias in modules.items() if rules.takes(module, alias)]
        left_out = [module for module, alias in modules.items() if rules.excludes(module, alias)]
    except re.error as error:
        raise AdapterError(
            "target_modules, exclude_modules, layers_pattern or modules_to_save is not a valid "
            f"regular expression: {error}. Pass a list of names, or a string that is a regular "
            "expression for full paths."
        ) from error
    unmatched = [
        f"{argument}: {name!r}"
        for argument, names in (
            ("target_modules", rules.target_modules),
            ("exclude_modules", rules.exclude_modules),
        )
        if not isinstance(names, str)
        for name in names or ()
        if not any(is_named(m, [name]) or is_named(alias, [name]) for m, alias in modules.items())
    ]
    if isinstance(rules.exclude_modules, str) and not left_out:
        unmatched.append(f"exclude_modules: {rules.exclude_modules!r}")
    if unmatched:
        raise _unmatched(unmatched, list(modules))
    return chosen


def _unmatched(names: Sequence[str], modules: Sequence[str]) -> AdapterError:
    """Returns the error for names that match no module."""
    return AdapterError(
        f"names that match no module of the params:{listing(names)}\nIts modules are:"
        f"{listing(modules)}"
    )


def _described(target: Target | None) -> str:
    """Describes a module for a message."""
    if target is None:
        return "it has no weight of floats"
    return f"{target.layer} of shape {target.shape}"


def _shown(names: Any) -> str:
    """Formats names for a message."""
    return repr(names if isinstance(names, str) or names is None else list(names))
