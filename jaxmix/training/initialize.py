"""`init` creates new adapters, initialized as in PEFT."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.errors import AdapterError, JaxmixError, UnsupportedError, listing
from jaxmix.families import Replace, Together, Update
from jaxmix.placement.layout import Layout
from jaxmix.placement.tree import Tree
from jaxmix.training.choosing import choose_targets, survey_with_rules
from jaxmix.training.draws import site_key
from jaxmix.training.initializers import KINDS, Initializer
from jaxmix.training.modules import Target
from jaxmix.training.survey import Survey
from jaxmix.training.targets import Rules, by_pattern, is_named

__all__ = ["init"]

Names = str | Sequence[str] | None

# Families without an initializer, and why.
_NO_START = {
    "delta": "it is the result of full fine-tuning or of combining adapters",
    "diagoft": "only LyCORIS and PEFT up to 0.15 write it; PEFT now uses 'oft'",
    "normed": "only LyCORIS writes it; PEFT uses 'dora'",
    "rebase": "it is a copy of the base's weight",
    "replace": "modules_to_save creates it, together with another kind",
    "together": "it combines several updates of one adapter",
}


def init(
    kind: str,
    params: Any,
    key: Any,
    *,
    target_modules: Names = None,
    rank: int | None = None,
    alpha: float | None = None,
    name: str | None = None,
    layout: Layout | str | None = None,
    exclude_modules: Names = None,
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: Names = None,
    modules_to_save: Sequence[str] | None = None,
    target_parameters: Sequence[str] | None = None,
    **config: Any,
) -> Adapter:
    r"""Creates a new adapter, initialized as in PEFT and ready for training.

    ``jaxmix.init("lora", params, key, target_modules=["q_proj", "v_proj"], rank=8, alpha=16)``.

    As in PEFT, adapters of almost all kinds leave the base's function unchanged at first.

    ``"all-linear"`` targets every linear layer, including each layer of a stack and attention with
    axes for heads, but no output head. Heads are ``lm_head``, ``embed_out`` and similar names
    outside numbered layers, or a ``head`` that maps an embedding's width to its vocabulary. The
    class of an NNX or Equinox module determines what a weight is. Without classes, names and shapes
    do: an ``embedding``, a module called ``embed_tokens`` or ``wte``, a ``scale`` and the gates of
    a recurrent cell are not linear layers. The modules of a model library's tree have Hugging
    Face's names, through its layout. Like PEFT without a ``task_type``, it also targets a
    classifier's head; name the head in ``exclude_modules`` to avoid that. Convolutions, embeddings
    and norms are targeted only by name.

    Arrays are float32, or float64 if the base is. Each site derives its key from its name, so its
    random numbers do not depend on the other targets.

    Args:
        kind: PEFT's name of the adapter type in lower case: ``"lora"``, ``"oft"``, …; also
            ``"dora"`` and ``"kasa"``, which are options of LoRA in PEFT.
        params: The base, any pytree of weights. It may be traced, or consist of shapes alone for
            kinds that do not read the base.
        key: A JAX key.
        target_modules: Names, each the full path of a module or the end of one; a regular
            expression for full paths; or ``"all-linear"``.
        rank: PEFT's ``r``; None for the kind's default.
        alpha: PEFT's ``lora_alpha`` or ``alpha``; None for the kind's default.
        name: The name of the adapter; by default the kind.
        layout: Where the sites are in the tree. By default the layout of a model library if one
            fits, otherwise the tree's own names. The rules of a custom layout are inverted.
        exclude_modules: Names or a regular expression, as above, of modules to leave out.
        layers_to_transform: The indices of the layers to target, for targets given as names.
        layers_pattern: The part of a path before the index of a layer.
        modules_to_save: Names of modules to train in full; they start with the base's values.
        target_parameters: Names of leaves of experts, for LoRA.
        **config: Other options of the kind, with PEFT's names and defaults; the error for an
            unknown option lists all of them. Options may differ by site:
            ``rank_pattern={r"layers\.0\.q": 4}``, and likewise for every other option, with regular
            expressions for a full path or the end of one.

    Returns:
        The adapter, with strength 1.

    Raises:
        AdapterError: If a kind, an option or a target is unknown, or no module is targeted.
        UnsupportedError: If the kind can't be initialized, or PEFT does not support the kind or an
            option for a targeted module.
        ShapeError: If an option does not fit the shape of a weight.
        LayoutError: If the layout is unknown, several layouts fit, or the axes of a weight can't be
            determined.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> params = {"q": {"kernel": jnp.ones((4, 6))}, "lm_head": {"kernel": jnp.ones((4, 9))}}
        >>> init("lora", params, jax.random.key(0), target_modules="all-linear", rank=2)
        lora: LoRA rank 2 at 1 site, strength 1 (q)

    Source: ``peft/mapping_func.py``, ``get_peft_model``; each tuner's ``layer.py``.
    """
    initializer = _initializer(kind)
    options, patterns = _options(kind, initializer, {"rank": rank, "alpha": alpha}, config)
    rules = Rules(
        target_modules, exclude_modules, modules_to_save, layers_to_transform, layers_pattern
    )
    surveyed = survey_with_rules(Tree.of(params), layout, rules)
    targets = choose_targets(kind, initializer, surveyed, rules, target_parameters)
    updates = _updates(kind, initializer, key, targets, options, patterns)
    for site, saved in _saved_modules(surveyed, modules_to_save).items():
        updates[site] = Together((saved, updates[site])) if site in updates else saved
    return Adapter(updates, name=kind if name is None else name)


def _initializer(kind: str) -> Initializer:
    """Returns the initializer of a kind."""
    if kind in KINDS:
        return KINDS[kind]
    expected = f"expected one of {', '.join(KINDS)}."
    if reason := _NO_START.get(str(kind).lower()):
        raise UnsupportedError(f"{kind!r} can't be initialized: {reason}; {expected}")
    raise AdapterError(f"there is no kind {kind!r}, {expected}")


def _options(
    kind: str, initializer: Initializer, named: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Returns the given options, and the patterns of those that differ by site."""
    options = {name: value for name, value in named.items() if value is not None} | dict(config)
    known = initializer.options
    patterns = {}
    for name in [name for name in options if name.endswith("_pattern")]:
        if (option := name.removesuffix("_pattern")) in known and not initializer.shared:
            patterns[option] = options.pop(name)
    if unknown := [name for name in options if name not in known]:
        lines = [f"{name}={value!r}" for name, value in known.items()]
        raise AdapterError(
            f"{kind} has no option {', '.join(unknown)}, expected some of:{listing(lines)}\n"
            + ("" if initializer.shared else "Each of them may also be given as a …_pattern.")
        )
    return options, patterns


def _updates(
    kind: str,
    initializer: Initializer,
    key: Any,
    targets: Mapping[str, Target],
    options: Mapping[str, Any],
    patterns: Mapping[str, Mapping[str, Any]],
) -> dict[str, Update]:
    """Initializes the updates; raises all failures as one error of the type of the first."""
    if initializer.shared:
        return initializer.make_all(key, targets, options)
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, target in targets.items():
        site_options = dict(options)
        for name, pattern in patterns.items():
            default = options.get(name, initializer.options[name])
            site_options[name] = by_pattern(pattern, site, default)
        try:
            updates[site] = initializer.make(site_key(key, site), target, site_options)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        lines = [f"{site}: {error}" for site, error in failed]
        raise type(failed[0][1])(f"{kind} can't be initialized at these sites:{listing(lines)}")
    return updates


def _saved_modules(survey: Survey, names: Sequence[str] | None) -> dict[str, Update]:
    """Returns the modules to train in full, with the base's values."""
    saved: dict[str, Update] = {}
    for name in names or ():
        inside = [m for m, alias in survey.modules.items() if is_named(m, [name]) or alias == name]
        parts = [m for m in survey.modules if any(f"{m}.".startswith(f"{i}.") for i in inside)]
        found = {m: target for m in parts if (target := survey.target(m)) is not None}
        if not found:
            raise AdapterError(f"modules_to_save: no module of the params is called {name!r}.")
        for module, target in found.items():
            bias = None if target.bias is None else target.bias_vector
            saved[module] = Replace(target.stored, bias)
    return saved
