"""Reads PEFT's folders by PEFT's documentation and source: the config's fields and the keys."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..case import Adapter
from ..tensorfile import BadFileError, Tensor
from .formulas import (
    Change,
    added,
    ia3,
    kron_delta,
    loha_delta,
    lora_delta,
    oft,
    rebased,
    replaced,
    scattered,
)
from .names import expect, floats, is_number, json_object, matrices, tensors_of, without_wrappers
from .targets import is_saved, is_targeted

__all__ = ["read"]

# For each type, the names of its parameters, the one with the longest end first.
_PARAMETERS = {
    "LORA": ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector.weight",
             "lora_magnitude_vector"),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "OFT": ("oft_R.weight",),
    "IA3": ("ia3_l",),
    "SHIRA": ("shira_weight", "shira_indices"),
}  # fmt: skip
# Fields that must be off, for each would change the weights in a way that the oracle does not know.
_OFF = (
    "layer_replication", "megatron_config", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora", "kasa_config",
    "peanut_config", "lora_ga_config",
)  # fmt: skip
_FLAGS = {
    "LORA": ("use_rslora", "use_dora", "lora_bias"),
    "OFT": ("coft", "block_share", "use_cayley_neumann"),
}
_INTEGERS = ("I64", "I32", "I16", "U8")
_DRAWN = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read(
    adapter: Adapter, files: Mapping[str, bytes], modules: Mapping[str, tuple[int, ...]]
) -> dict[str, Change]:
    """Returns the change that an adapter makes at each of its modules.

    Args:
        adapter: The adapter to read.
        files: All files.
        modules: The base's modules, with the shapes of their weights.

    Returns:
        ``{module: change}``.

    Raises:
        BadFileError: If there is no right answer.
    """
    config = json_object(files, f"{adapter.path}/adapter_config.json")
    tensors, _ = tensors_of(files, f"{adapter.path}/adapter_model.safetensors")
    kind: Any = config.get("peft_type")
    expect(isinstance(kind, str) and kind in _PARAMETERS, f"peft_type {kind!r}")
    for field in _OFF:
        expect(not config.get(field), f"{field} is on")
    for field in _FLAGS.get(kind, ()):
        expect(config.get(field) is None or isinstance(config[field], bool), f"{field} is no flag")
    sites, saved = _by_site(tensors, kind, config)
    changes = {}
    for site, factors in sites.items():
        expect(is_targeted(config, site), f"{site} is not among the targets")
        # The body of a model is called "model" in the whole one.
        spellings = [site, site.removeprefix("model."), f"model.{site}"]
        site = next((name for name in spellings if name in modules), site)
        expect(site in modules and site not in changes, f"no module {site}, or twice")
        # To factors of two axes a convolution's kernel is part of its inputs.
        shape = (modules[site][0], math.prod(modules[site][1:]))
        changes[site] = _BUILDERS[kind](factors, config, site, shape, adapter.strength)
    for site, leaves in saved.items():
        expect(site not in changes, f"{site} has factors, and is saved")
        for name, leaf in leaves.items():
            size = math.prod(modules[site][1:]) if name == "weight" else 1
            expected = len(leaf), math.prod(leaf.shape[1:])
            expect(expected == (modules[site][0], size), f"{site}.{name} has another shape")
        expect(adapter.strength == 1, "saved leaves at another strength")
        weight = leaves.get("weight")
        is_whole = weight is None or weight.ndim != 2 or is_saved(config, site)
        changes[site] = (replaced if is_whole else rebased)(weight, leaves.get("bias"))
    return changes


def _by_site(
    tensors: Mapping[str, Tensor], kind: str, config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, np.ndarray]]]:
    """Returns the factors of each module, and the saved leaves."""
    # The state of a model in training has the adapter's name in its keys.
    suffix = r"\.(?!weight\.|bias\.|weight$|bias$)[^.]+"
    names = "|".join(name.replace(".", rf"(?:{suffix})?\.") for name in _PARAMETERS[kind])
    factor = re.compile(rf"(?:base_model\.model\.)?(.+?)\.({names}|(?:{names}){suffix})")
    sites: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in _unwrapped(tensors).items():
        if match := factor.fullmatch(key):
            site, name = without_wrappers(match[1]), _plain(match[2], kind)
            expect(name not in sites.setdefault(site, {}), f"{key} is there twice")
            sites[site][name] = tensor
            continue
        path = key.removeprefix("base_model.model.")
        site, _, leaf = without_wrappers(path).rpartition(".")
        # PEFT puts each leaf that fits into the base.
        expect(leaf in ("weight", "bias"), f"{key} belongs to nothing")
        expect(leaf not in saved.setdefault(site, {}), f"{key} is there twice")
        saved[site][leaf] = floats(tensor, key)
    return sites, saved


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors without PEFT's wrapper of fully trained modules.

    Where a key is there with the wrapper and without, PEFT reads the one without.
    """
    plain_tensors: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = re.sub(r"\.modules_to_save(?:\.[^.]+)?(?=\.[^.]+$)", "", key)
        if plain == key or plain not in tensors:
            expect(plain not in plain_tensors, f"{key} is there twice")
            plain_tensors[plain] = tensor
    return plain_tensors


def _plain(name: str, kind: str) -> str:
    """Returns a parameter's name without the adapter's name."""
    first, _, rest = name.partition(".")
    return first if first in _PARAMETERS[kind] else f"{first}.{rest.rpartition('.')[2]}"


def _value(config: Mapping[str, Any], patterns: str, field: str, site: str) -> Any:
    """Returns a field's value for one module, by the first matching pattern."""
    by_pattern = config.get(patterns) or {}
    expect(isinstance(by_pattern, dict), f"{patterns} is no object")
    for pattern, value in by_pattern.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", site):
                return value
        except re.error as error:
            raise BadFileError(f"{patterns}: {error}") from error
    return config.get(field)


def _rank_and_scale(config: Mapping[str, Any], site: str, alpha: str) -> tuple[int, float]:
    rank = _value(config, "rank_pattern", "r", site)
    numerator = _value(config, "alpha_pattern", alpha, site)
    expect(is_number(rank) and rank == int(rank) and rank >= 1, f"rank {rank!r}")
    expect(is_number(numerator), f"{alpha} {numerator!r}")
    return int(rank), numerator / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _take(factors: Mapping[str, Tensor], *names: str) -> list[np.ndarray]:
    """Returns all of a module's factors, which must be exactly the named ones."""
    expect(set(factors) == set(names), f"{sorted(factors)}, expected {sorted(names)}")
    return [floats(factors[name], name) for name in names]


def _lora(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    rank, scale = _rank_and_scale(config, site, "lora_alpha")
    init = config.get("init_lora_weights")
    expect(not isinstance(init, str) or not init.lower().startswith(_DRAWN), f"init {init}")
    has_dora, has_bias = bool(config.get("use_dora")), bool(config.get("lora_bias"))
    names = ["lora_A.weight", "lora_B.weight"]
    names += ["lora_magnitude_vector"] * has_dora + ["lora_B.bias"] * has_bias
    a, b, *others = _take(factors, *names)
    matrices(site, a, b)
    expect(a.shape == (rank, shape[1]) and b.shape == (shape[0], rank), f"{site}: shapes")
    # A convolution's magnitude has axes of length one.
    others = [x.reshape(-1) if x.size == max(x.shape, default=0) else x for x in others]
    expect(all(other.shape == shape[:1] for other in others), f"{site}: shapes of vectors")
    expect(not (has_dora and has_bias), "DoRA with a bias")
    expect(strength == 1 or not others, "a strength")
    return added(
        lora_delta(a, b, strength * scale),
        magnitude=others[0] if has_dora else None,
        bias=scale * others[0] if has_bias else None,
    )


def _adalora(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    a, b, e = _take(factors, "lora_A", "lora_B", "lora_E")
    matrices(site, a, b, e)
    expect(a.shape[1:] == shape[1:] and b.shape[:1] == shape[:1], f"{site}: shapes")
    rank = config.get("init_r")
    expect(is_number(rank) and rank == int(rank) and rank >= 1, f"init_r {rank!r}")
    expect(a.shape[0] == b.shape[1] == e.shape[0] and e.shape[1] == 1, f"{site}: ranks")
    expect(a.shape[0] <= rank, "more ranks than init_r")
    alpha = config.get("lora_alpha")
    expect(is_number(alpha), f"alpha {alpha!r}")
    numerator = alpha if alpha > 0 else rank
    return added(lora_delta(a * e, b, strength * numerator / (rank + 1e-5)))


def _loha(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    rank, scale = _rank_and_scale(config, site, "alpha")
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    arrays = dict(zip(names, _take(factors, *names), strict=True))
    for name, array in arrays.items():
        expected = (shape[0], rank) if name.endswith("a") else (rank, shape[1])
        expect(array.shape == expected, f"{site}.{name} {array.shape}")
    return added(loha_delta(arrays, strength * scale))


def _lokr(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    rank, scale = _rank_and_scale(config, site, "alpha")
    names = [
        name
        for end in "12"
        for name in (
            [f"lokr_w{end}"] if f"lokr_w{end}" in factors else [f"lokr_w{end}_a", f"lokr_w{end}_b"]
        )
    ]
    arrays = dict(zip(names, _take(factors, *names), strict=True))
    # PEFT's trap: `torch.kron` puts axes that one of the two lacks in front, as `np.kron` does.
    expect(all(x.ndim > 1 and x.size for x in arrays.values()), f"{site}: no matrices")
    sides = [tuple(x for name, x in arrays.items() if name.startswith(f"lokr_w{i}")) for i in "12"]
    for side in sides:
        expect(len(side) == 1 or side[0].shape[1] == side[1].shape[0] == rank, f"{site}: ranks")
    delta = kron_delta(sides[0], sides[1], strength * scale)
    expect(delta(np.dtype(np.float64)).size == math.prod(shape), f"{site}: shapes")
    return added(lambda kind: delta(kind).reshape(shape))


def _oft(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    (numbers,) = _take(factors, "oft_R.weight")
    expect(numbers.ndim == 2 and len(numbers), f"{site}: no blocks")  # perhaps of one number each
    width = round((1 + math.sqrt(1 + 8 * numbers.shape[1])) / 2)
    expect(width * (width - 1) // 2 == numbers.shape[1], f"{site}: no triangle")
    count = numbers.shape[0]
    expect(count * width == shape[1] or (count == 1 and shape[1] % width == 0), f"{site}: blocks")
    expect(not config.get("block_share") or count == 1, f"{site}: shared blocks")
    terms, eps = config.get("num_cayley_neumann_terms"), config.get("eps")
    is_series = bool(config.get("use_cayley_neumann"))
    if is_series:
        expect(type(terms) is int and 1 <= terms <= 1000, "terms")
    if config.get("coft"):
        expect(is_number(eps) and eps >= 0, f"eps {eps!r}")
    text = config.get("peft_version")
    version = re.match(r"(\d+)\.(\d+)", text if isinstance(text, str) else "")
    is_old = version is None or (int(version[1]), int(version[2])) < (0, 18)
    return oft(
        numbers,
        terms=terms if is_series else None,
        eps=float(eps) if config.get("coft") else None,
        ends_twice=is_series and is_old,
        strength=strength,
    )


def _ia3(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    (factor,) = _take(factors, "ia3_l")
    if factor.ndim > 2 and factor.size == factor.shape[1]:  # of a convolution, always (1, n, 1 …)
        expect(config.get("feedforward_modules") is not None, "inputs or outputs")
        factor = factor.reshape((1, -1) if _is_feedforward(config, site, factor) else (-1, 1))
    matrices(site, factor)
    is_feedforward = _is_feedforward(config, site, factor)
    expected = (1, shape[1]) if is_feedforward else (shape[0], 1)
    expect(factor.shape == expected, f"{site}: {factor.shape}, expected {expected}")
    return ia3(factor, is_feedforward=is_feedforward)


def _is_feedforward(config: Mapping[str, Any], site: str, factor: np.ndarray) -> bool:
    """Whether IA3 scales a module's inputs; the factor's shape decides if the config does not."""
    modules = config.get("feedforward_modules")
    if isinstance(modules, str):
        return bool(re.fullmatch(modules, site))
    return factor.shape[0] == 1 if modules is None else site.endswith(tuple(modules))


def _shira(factors: Any, config: Any, site: str, shape: Any, strength: float) -> Change:
    expect(set(factors) == {"shira_weight", "shira_indices"}, f"{sorted(factors)}")
    values, places = floats(factors["shira_weight"], site), factors["shira_indices"]
    expect(places.dtype in _INTEGERS or places.is_float, f"{site}: no places")
    expect((places.numbers % 1 == 0).all(), f"{site}: places between numbers")  # Windows: floats
    indices = places.numbers.astype(np.int64)
    expect(values.ndim == 1 and indices.shape == (2, len(values)), f"{site}: shapes")
    expect((indices >= 0).all() and (indices < np.array([shape]).T).all(), f"{site}: places")
    return scattered(values, indices)


_BUILDERS: dict[str, Any] = {
    "LORA": _lora, "ADALORA": _adalora, "LOHA": _loha, "LOKR": _lokr, "OFT": _oft, "IA3": _ia3,
    "SHIRA": _shira,
}  # fmt: skip
