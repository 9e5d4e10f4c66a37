"""Which site a key's module path means: PEFT's wrappers add ``base_layer`` to it.

A wrapper keeps what it wraps under that name, so that ``<module>.base_layer.<parameter>`` are the
factors of an inner wrapper, or the base's own leaf. At its end it is left out. Two of LoRA's
wrappers mean more by it: torch's MultiheadAttention, whose output projection lies inside of what
is wrapped, and several parameters of one module, each of which has a wrapper around the others'.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jaxmix.converters.peft.file import Config, File
from jaxmix.errors import CheckpointError

__all__ = ["INNER", "located", "pattern_site", "stripped"]

INNER = ".base_layer"
_OUT_PROJ = f"{INNER}.out_proj"
# Trained tokens beside another type wrap the embedding once more.
_TOKENS = ".token_adapter"


def stripped(path: str) -> str:
    """A module's path without what wrappers add at its end."""
    while path.endswith(INNER):
        path = path.removesuffix(INNER).removesuffix(_TOKENS)
    return path


def located(file: File, factors: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Factors by site, of factors by the path that stands in the key.

    Args:
        file: the adapter's file.
        factors: ``{path: {parameter: array}}``.

    Returns:
        ``{site: {parameter: array}}``. The input projection of a MultiheadAttention, and a
        parameter that is a leaf by itself, are sites under the leaf's own name.

    Raises:
        CheckpointError: if it can't be told which parameter a wrapper is for.
    """
    attentions = {path.removesuffix(_OUT_PROJ) for path in factors if path.endswith(_OUT_PROJ)}
    out: dict[str, dict[str, Any]] = {}
    modules: dict[str, list[str]] = defaultdict(list)
    for path, own in factors.items():
        if path in attentions:
            out[f"{path}.in_proj_weight"] = own
        elif path.endswith(_OUT_PROJ):
            out[path.replace(_OUT_PROJ, ".out_proj")] = _twice(own)
        elif _parameters(file, path, own):
            modules[stripped(path)].append(path)
        else:
            out[stripped(path)] = own
    for module, paths in modules.items():
        for path, parameter in _assigned(file, module, factors, paths).items():
            out[f"{module}.{parameter}"] = factors[path]
    return out


def pattern_site(file: File, site: str) -> str:
    """The module of a site by which PEFT's patterns find it.

    Both projections of a MultiheadAttention go by the attention's name, and not by their own.

    Args:
        file: the adapter's file.
        site: the site.

    Returns:
        The site, or the attention that it is a part of.
    """
    module, _, name = site.rpartition(".")
    is_part = name in ("in_proj_weight", "out_proj") and f"{module}{_OUT_PROJ}" in file.sites
    return module if is_part else site


def _twice(factors: dict[str, Any]) -> dict[str, Any]:
    """The factors of an attention's output projection, whose LoRA PEFT adds twice.

    It merges the attention and then, inside of it, the projection once more; in its forward as in
    its merge, and so such adapters are trained.
    """
    return {name: 2 * f if name == "lora_B.weight" else f for name, f in factors.items()}


def parameters(config: Config, module: str) -> list[str]:
    """The parameters of a module that ``target_parameters`` names."""
    found = []
    for target in config.values.get("target_parameters") or ():
        inside, _, name = target.rpartition(".")
        if not inside or module == inside or module.endswith(f".{inside}"):
            found.append(name)
    return found


def _parameters(file: File, path: str, own: Mapping[str, Any]) -> list[str]:
    """The parameters that a wrapper with these factors may be for; none if it is a layer's.

    A target without a module is any module's, and so would be a layer's that is targeted beside it;
    but only a parameter's A is stacked.
    """
    names = parameters(file.config, stripped(path))
    bare = set(names).intersection(file.config.values.get("target_parameters") or ())
    if not bare:
        return names
    rank = file.config.by_site("rank_pattern", "r", f"{stripped(path)}.{names[0]}")
    is_layer = getattr(own.get("lora_A.weight"), "shape", ())[:1] == (rank,)
    return [name for name in names if not (is_layer and name in bare)]


def _assigned(
    file: File, module: str, factors: Mapping[str, dict[str, Any]], paths: list[str]
) -> dict[str, str]:
    """Which parameter each of a module's wrappers is for: by their shapes, if there are several."""
    names = list(dict.fromkeys(parameters(file.config, module)))
    if len(names) == len(paths) == 1:
        return {paths[0]: names[0]}
    shapes = {name: file.shape(f"{module}.{name}")[-2:] for name in names}
    fits: dict[str, list[str]] = {}
    for path in paths:
        a, b = (factors[path].get(f"lora_{x}.weight") for x in "AB")
        sizes = () if a is None or b is None else (b.shape[0], a.shape[-1])
        fits[path] = [name for name in names if sorted(shapes[name]) == sorted(sizes)]
    if any(len(fit) != 1 for fit in fits.values()) or len({f[0] for f in fits.values()}) != len(
        paths
    ):
        raise CheckpointError(
            f"{file.config.path.parent}: it can't be told which factors at {module} are for which "
            f"of {', '.join(names)}, whose shapes are {list(shapes.values())}. The file does not "
            "say; train them as adapters of their own."
        )
    return {path: fit[0] for path, fit in fits.items()}
