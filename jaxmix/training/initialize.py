"""Adapters made from nothing, as PEFT makes them before training."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.errors import AdapterError, JaxmixError, UnsupportedError, listing
from jaxmix.families import Replace, Together, Update
from jaxmix.placement.layout import Layout
from jaxmix.placement.tree import Tree
from jaxmix.training.choose import surveyed, targets_of
from jaxmix.training.draws import site_key
from jaxmix.training.kinds import KINDS, Kind
from jaxmix.training.modules import Target
from jaxmix.training.survey import Survey
from jaxmix.training.targets import Rules, by_pattern, is_named

__all__ = ["init"]

Names = str | Sequence[str] | None

# What is a family, and nothing that training starts from.
_NO_START = {
    "delta": "a difference that is there already",
    "diagoft": "written by LyCORIS and by PEFT up to 0.15; 'oft' is what PEFT makes now",
    "normed": "written by LyCORIS; 'dora' is what PEFT makes",
    "rebase": "a copy of the base's own weight",
    "replace": "what modules_to_save makes, beside another kind",
    "together": "several updates of one adapter",
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
    r"""A new adapter, ready to be trained: random where PEFT draws, and the base's own function.

    ``jaxmix.init("lora", params, key, target_modules=["q_proj", "v_proj"], rank=8, alpha=16)``.

    ``"all-linear"`` is every linear layer but an output head (``lm_head``, ``embed_out``, … outside
    the numbered layers, or a ``head`` from an embedding's width to its vocabulary), each layer of a
    stack and each attention with axes for heads included. The class of an NNX or Equinox module
    tells what a weight is, and else names and shapes do: an ``embedding``, a module called
    ``embed_tokens`` or ``wte``, a ``scale``, and the gates of a recurrent cell are none. A tree of
    a model library has Hugging Face's names, through its layout. PEFT takes a classifier's head for
    a linear layer too, unless its ``task_type`` says what it is: name it in ``exclude_modules``. A
    convolution, an embedding and a norm have to be named.

    Arrays are float32, or float64 where the base is. The key of a site comes from its name, so that
    it has the same numbers whatever else is targeted.

    Args:
        kind: what to make, by PEFT's name of the type in small letters: ``"lora"``, ``"oft"``, …;
            and ``"dora"`` and ``"kasa"``, which PEFT has as options of LoRA.
        params: the base's params, any pytree of weights; traced too, or of shapes alone where the
            kind does not read the base.
        key: a JAX key.
        target_modules: names, each a module's whole path or its end; a regular expression for whole
            paths; or ``"all-linear"``.
        rank: PEFT's ``r``; None for the kind's own default.
        alpha: PEFT's ``lora_alpha`` or ``alpha``; None for the kind's own default.
        name: what to call the adapter; None for the kind.
        layout: where sites lie in the tree; None to look for a model library's, and else for the
            tree's own names. The rules of a layout of your own are read backwards.
        exclude_modules: names or a regular expression, as above, of what is left out.
        layers_to_transform: the numbers of the layers that are meant; names alone obey it.
        layers_pattern: what stands before a layer's number in a path.
        modules_to_save: names of modules that are trained whole: they start as the base has them.
        target_parameters: names of leaves of experts, for LoRA.
        **config: the kind's other words, by PEFT's names and with PEFT's defaults; what they are an
            unknown one is told. A word may differ by site: ``rank_pattern={r"layers\.0\.q": 4}``,
            and so for every other, with regular expressions for the end of a path or all of it.

    Returns:
        The adapter, of strength 1.

    Raises:
        AdapterError: if there is no such kind or word, or targets are none, or nobody's.
        UnsupportedError: if a family is nothing that training starts from, or PEFT has the kind, or
            an option, not for such a module.
        ShapeError: if numbers do not divide a weight as they should.
        LayoutError: if there is no such layout, several fit, or weights can't be judged.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> params = {"q": {"kernel": jnp.ones((4, 6))}, "lm_head": {"kernel": jnp.ones((4, 9))}}
        >>> init("lora", params, jax.random.key(0), target_modules="all-linear", rank=2)
        lora: LoRA rank 2 at 1 site, strength 1 (q)

    Source: ``peft/mapping_func.py``, ``get_peft_model``; each tuner's ``layer.py``.
    """
    known = _kind(kind)
    words, patterns = _words(kind, known, {"rank": rank, "alpha": alpha}, config)
    rules = Rules(
        target_modules, exclude_modules, modules_to_save, layers_to_transform, layers_pattern
    )
    found = surveyed(Tree.of(params), layout, rules)
    targets = targets_of(kind, known, found, rules, target_parameters)
    updates = _made(kind, known, key, targets, words, patterns)
    for site, saved in _saved(found, modules_to_save).items():
        updates[site] = Together((saved, updates[site])) if site in updates else saved
    return Adapter(updates, name=kind if name is None else name)


def _kind(kind: str) -> Kind:
    """The kind of this name."""
    if kind in KINDS:
        return KINDS[kind]
    known = f"expected one of {', '.join(KINDS)}."
    if why := _NO_START.get(str(kind).lower()):
        raise UnsupportedError(f"{kind!r} can't be trained from the start: it is {why}; {known}")
    raise AdapterError(f"there is no kind {kind!r}, {known}")


def _words(
    kind: str, known: Kind, named: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """The words for the kind, and those of them that differ by site."""
    given = {word: value for word, value in named.items() if value is not None} | dict(config)
    takes = known.words
    patterns = {
        word.removesuffix("_pattern"): given.pop(word)
        for word in list(given)
        if word.endswith("_pattern") and word.removesuffix("_pattern") in takes and not known.shared
    }
    if unknown := [word for word in given if word not in takes]:
        told = [f"{word}={value!r}" for word, value in takes.items()]
        raise AdapterError(
            f"{kind} takes no {', '.join(unknown)}, expected words of:{listing(told)}\n"
            + ("" if known.shared else "Each of them may have a …_pattern beside it.")
        )
    return given, patterns


def _made(
    kind: str,
    known: Kind,
    key: Any,
    targets: Mapping[str, Target],
    words: Mapping[str, Any],
    patterns: Mapping[str, Mapping[str, Any]],
) -> dict[str, Update]:
    """The updates; what fails is gathered and raised at once, by its first kind."""
    if known.shared:
        return known.make_all(key, targets, words)
    updates: dict[str, Update] = {}
    failed: list[tuple[str, JaxmixError]] = []
    for site, one in targets.items():
        here = dict(words)
        for word, told in patterns.items():
            default = words.get(word, known.words[word])
            here[word] = by_pattern(told, site, default)
        try:
            updates[site] = known.make(site_key(key, site), one, here)
        except JaxmixError as error:
            failed.append((site, error))
    if failed:
        lines = [f"{site}: {error}" for site, error in failed]
        raise type(failed[0][1])(f"sites that can't have such a {kind}:{listing(lines)}")
    return updates


def _saved(survey: Survey, names: Sequence[str] | None) -> dict[str, Update]:
    """The modules that are trained whole, as the base has them."""
    saved: dict[str, Update] = {}
    for name in names or ():
        inside = [m for m, alias in survey.modules.items() if is_named(m, [name]) or alias == name]
        parts = [m for m in survey.modules if any(f"{m}.".startswith(f"{i}.") for i in inside)]
        found = {m: one for m in parts if (one := survey.target(m)) is not None}
        if not found:
            raise AdapterError(f"modules_to_save: no module of the params is called {name!r}.")
        for module, one in found.items():
            saved[module] = Replace(one.stored, None if one.bias is None else one.bias_vector)
    return saved
