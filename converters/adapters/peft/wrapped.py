"""Converts module paths in keys, to which PEFT's wrappers add ``base_layer``, to sites.

A wrapper stores the wrapped module under that name, so ``<module>.base_layer.<parameter>`` are the
factors of an inner wrapper, or the base's own leaf. ``base_layer`` at the end of a path is removed.
In two cases of LoRA it carries information: in torch's MultiheadAttention, whose output projection
is inside the wrapped module, and where nested wrappers adapt several parameters of one module.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from jaxmix.converters.adapters.peft.experts import has_inputs_first
from jaxmix.converters.adapters.peft.file import Config, File
from jaxmix.errors import CheckpointError
from jaxmix.training.targets import Rules

__all__ = ["INNER", "located", "pattern_site", "stripped"]

INNER = ".base_layer"
_OUT_PROJ = f"{INNER}.out_proj"
# Trained tokens of another type add a wrapper around the embedding.
_TOKENS = ".token_adapter"


def stripped(path: str) -> str:
    """Removes the names of wrappers at the end of a module's path."""
    while path.endswith(INNER):
        path = path.removesuffix(INNER).removesuffix(_TOKENS)
    return path


def located(file: File, factors: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Converts factors by the path in the key to factors by site.

    Args:
        file: The adapter's file.
        factors: ``{path: {parameter: array}}``.

    Returns:
        ``{site: {parameter: array}}``. The input projection of a MultiheadAttention, and a
        parameter that is a leaf by itself, are sites with the leaf's own name.

    Raises:
        CheckpointError: If the parameter of a wrapper can't be determined.
    """
    attentions = {path.removesuffix(_OUT_PROJ) for path in factors if path.endswith(_OUT_PROJ)}
    out: dict[str, dict[str, Any]] = {}
    modules: dict[str, list[str]] = defaultdict(list)
    for path, arrays in factors.items():
        if path in attentions:
            out[f"{path}.in_proj_weight"] = arrays
        elif path.endswith(_OUT_PROJ):
            out[path.replace(_OUT_PROJ, ".out_proj")] = _doubled(arrays)
        elif parameters(file.config, stripped(path)):
            modules[stripped(path)].append(path)
        else:
            out[stripped(path)] = arrays
    for module, paths in modules.items():
        if names := _names(file, module, [factors[path] for path in paths]):
            for path, name in _assigned(file, module, names, factors, paths).items():
                out[f"{module}.{name}"] = factors[path]
        else:
            out[module] = factors[paths[0]]
    return out


def pattern_site(file: File, site: str) -> str:
    """Returns the name of a site in PEFT's patterns.

    Both projections of a MultiheadAttention have the attention's name.

    Args:
        file: The adapter's file.
        site: The site.

    Returns:
        The site, or the attention that it is a part of.
    """
    module, _, name = site.rpartition(".")
    is_part = name in ("in_proj_weight", "out_proj") and f"{module}{_OUT_PROJ}" in file.sites
    return module if is_part else site


def _doubled(factors: dict[str, Any]) -> dict[str, Any]:
    """Doubles the LoRA of an attention's output projection, which PEFT adds twice.

    PEFT merges first the attention and then the projection inside it, in its forward too, so such
    adapters are trained with twice the product.
    """
    return {name: 2 * f if name == "lora_B.weight" else f for name, f in factors.items()}


def parameters(config: Config, module: str) -> list[str]:
    """Returns the parameters that ``target_parameters`` names for a module, if it has them.

    Args:
        config: The adapter's config.
        module: The module's path.

    Returns:
        Their names, starting with those whose target also names the module.
    """
    named, bare = [], []
    for target in config.values.get("target_parameters") or ():
        inside, _, name = target.rpartition(".")
        if not inside:
            bare.append(name)
        elif module == inside or module.endswith(f".{inside}"):
            named.append(name)
    return list(dict.fromkeys(named + bare))


def _names(file: File, module: str, wrappers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters of a module that its wrappers may belong to; empty if the module is a layer.

    A target without a module applies to any module with such a parameter, which the base shows.
    PEFT refuses a module that is targeted both as a layer and by its parameters.
    """
    config, names = file.config, parameters(file.config, module)
    is_single = len(wrappers) == 1  # as for a layer
    if is_single and _is_layer(config, module):
        return []
    if file.base is not None:
        if existing := [name for name in names if file.base.has(_leaf(module, name))]:
            return existing
        if is_single and file.base.has(module):
            return []
    bare = set(config.values.get("target_parameters") or ())
    if is_single and bare.issuperset(names):
        a = wrappers[0].get("lora_A.weight")
        rank = config.by_site("rank_pattern", "r", module)
        if getattr(a, "shape", ())[:1] == (rank,):  # factors of experts are stacked
            return []
    return names


def _is_layer(config: Config, module: str) -> bool:
    """Whether ``target_modules`` names a module."""
    targets = config.values.get("target_modules") or ()
    try:
        return Rules(targets).takes(module)
    except (re.error, TypeError):
        return False


def _leaf(module: str, name: str) -> str:
    """The base model's name for a parameter; a weight has its module's name."""
    return module if name == "weight" else f"{module}.{name}"


def _assigned(
    file: File,
    module: str,
    names: list[str],
    factors: Mapping[str, dict[str, Any]],
    paths: list[str],
) -> dict[str, str]:
    """Assigns a parameter to each of a module's wrappers, by their shapes if there are several.

    The order of ``target_parameters`` is irrelevant. PEFT wraps a module's parameters in the order
    in which the module registered them, the first one innermost.
    """
    if len(names) == len(paths) == 1:
        return {paths[0]: names[0]}
    assignments: dict[tuple[str, ...], set[bool]] = {}
    for in_first in (False, True):
        for chosen in permutations(names, len(paths)):
            fits = (
                _fits(file, module, name, factors[path], in_first=in_first)
                for name, path in zip(chosen, paths, strict=True)
            )
            if all(fits):
                assignments.setdefault(chosen, set()).add(in_first)
    if len(assignments) > 1 and (in_first := has_inputs_first(file, module)) is not None:
        assignments = {
            chosen: {in_first} for chosen, orders in assignments.items() if in_first in orders
        }
    if len(assignments) > 1 and (order := _registered(file, module, names)):
        inner_first = sorted(paths, key=len, reverse=True)
        by_order = dict(zip(inner_first, order, strict=False))
        chosen = tuple(by_order.get(path, "") for path in paths)
        assignments = {chosen: assignments[chosen]} if chosen in assignments else {}
    if len(assignments) != 1:
        shapes = [file.shape(_leaf(module, name)) for name in names]
        raise CheckpointError(
            f"{file.config.path.parent}: the factors at {module} fit "
            f"{'several' if assignments else 'none'} of its parameters {', '.join(names)} with "
            f"shapes {shapes}, and the file does not assign them. Pass the base as a flat dict in "
            "the model's own order, jaxmix.load(…, base={name: array for name, array in "
            "model.state_dict().items()}), or train them as separate adapters."
        )
    ((chosen, orientations),) = assignments.items()
    if len(orientations) == 1:
        file.cache[module, "in_first"] = orientations == {True}
    return dict(zip(paths, chosen, strict=True))


def _fits(
    file: File, module: str, name: str, factors: Mapping[str, Any], *, in_first: bool
) -> bool:
    """Whether factors fit a parameter's shape.

    Args:
        file: The adapter's file.
        module: The module.
        name: The parameter.
        factors: The factors of a wrapper.
        in_first: Whether the module's experts are stored as (in, out).
    """
    a, b = (getattr(factors.get(f"lora_{side}.weight"), "shape", ()) for side in "AB")
    if len(a) != 2 or len(b) != 2:
        return False
    *stack, first, second = (1, 1, *file.shape(_leaf(module, name)))[-3:]
    is_matrix = len(file.shape(_leaf(module, name))) == 2
    rank = file.config.by_site("rank_pattern", "r", f"{module}.{name}")
    sizes = (second, first) if in_first and not is_matrix else (first, second)
    return (b[0], a[1]) == sizes and a[0] == b[1] == rank * stack[0]


def _registered(file: File, module: str, names: list[str]) -> list[str]:
    """A module's parameters in the model's own order; empty if the base does not show it.

    An alphabetical order may come from a sorted dict.
    """
    ends = {name: f"{module}.{name}" for name in names}
    order = file.base.order if file.base is not None else ()
    registered = [name for leaf in order for name, end in ends.items() if leaf.endswith(end)]
    return registered if len(registered) == len(names) and registered != sorted(registered) else []
