"""kohya's single files, and LyCORIS's: `lora_unet_…`, `lora_te1_…`, `lycoris_…`.

A key is ``<prefix>_<module, dots as underscores>.<parameter>``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmix.adapter import Adapter
from jaxmix.converters.adapters.base import base_model
from jaxmix.converters.adapters.lycoris.files import file_keys, file_tensors
from jaxmix.converters.adapters.lycoris.keys import split_key
from jaxmix.converters.adapters.lycoris.names import found_modules
from jaxmix.converters.adapters.lycoris.updates import build_all
from jaxmix.converters.adapters.lycoris.writing import module_tensors, save_tensors, with_plain_bias
from jaxmix.converters.adapters.peft.shapes import Factors
from jaxmix.errors import AdapterError, CheckpointError, UnsupportedError, listing, option
from jaxmix.placement.names import without_wrappers

__all__ = ["PREFIXES", "export_kohya", "is_kohya", "read_kohya"]

# A file's prefix, and the part of a pipeline that it is for.
PREFIXES: dict[str, str] = {
    "lora_unet": "unet",
    "lora_transformer": "unet",
    "lora_prior_unet": "unet",
    "lora_te": "te1",
    "lora_te1": "te1",
    "lora_te2": "te2",
    "lora_te3": "te3",
    "lora_prior_te": "te1",
    "oft_unet": "unet",
    "lycoris": "",
}


def is_kohya(path: Path) -> bool:
    """Whether a file's keys are kohya's or LyCORIS's."""
    return path.is_file() and any(_prefix(key) for key in file_keys(path))


def read_kohya(
    path: Path, name: str, strength: Any = 1.0, *, base: Any = None, part: str | None = None
) -> Adapter:
    """Reads a file that kohya's scripts or LyCORIS wrote, or another in their names.

    Args:
        path: the file.
        name: what to call the adapter.
        strength: the strength with which it enters a mix, a real scalar.
        base: what the adapter is for, to tell dots from underscores: params, a flat dict, a Hugging
            Face folder, or a list of module names.
        part: the prefix to read where a file is for several models (``lora_unet``); other keys are
            left. None reads all.

    Returns:
        The adapter; its sites are the base's modules.

    Raises:
        CheckpointError: if keys mean nothing, names do not fit the base, or there is no base.
        UnsupportedError: if a module's tensors are of a kind that jaxmix does not do.
        ShapeError: if they disagree.
        AdapterError: if a number is not finite.

    Example:
        >>> read_kohya(Path("no/such/file"), "style")
        Traceback (most recent call last):
        ...
        jaxmix.errors.CheckpointError: no/such/file is no file, expected a .safetensors. ...

    Source: kohya-ss/sd-scripts, ``networks/lora.py``; KohakuBlueleaf/LyCORIS.
    """
    modules = _sorted(file_tensors(path), str(path), part)
    names = _sites(modules, base, str(path))
    return (
        Adapter(
            build_all({names[module]: tensors for module, tensors in modules.items()}, str(path)),
            name=name,
        )
        * strength
    )


def _sorted(tensors: Mapping[str, Any], where: str, part: str | None) -> dict[str, Factors]:
    """The tensors by module, under the names of the file."""
    modules: dict[str, Factors] = {}
    unknown: list[str] = []
    parts: set[str] = set()
    for key, tensor in tensors.items():
        prefix, split = _prefix(key), split_key(key)
        if prefix is not None:
            parts.add(prefix)
        if prefix is None or split is None or "." in split[0]:
            unknown.append(f"{key}: {_unknown(key)}")
        elif part is None or prefix == part:
            module, parameter = split
            if parameter in modules.setdefault(module, {}):
                unknown.append(f"{key}: {parameter} a second time")
            modules[module][parameter] = tensor
    if unknown:
        raise CheckpointError(
            f"{where}: keys that mean nothing in a file of kohya's or LyCORIS's:{listing(unknown)}"
            f"\nExpected <prefix>_<module>.<parameter>, with one of {', '.join(PREFIXES)}."
        )
    still = [
        f"{module}: alpha is 0, to which sd-scripts' OFT bounds every rotation: it does nothing"
        for module, factors in modules.items()
        if module.startswith("oft_") and "alpha" in factors and not factors["alpha"].any()
    ]
    if still:
        raise UnsupportedError(f"{where}: modules without effect:{listing(still)}\nLeave them out.")
    if not modules:
        raise CheckpointError(
            f"{where} has nothing for part={part!r}, expected one of {', '.join(sorted(parts))}."
        )
    return modules


def _unknown(key: str) -> str:
    """What to say of a key that is no parameter."""
    end = key.rpartition(".")[2]
    if end in _KNOWN_BUT_NOT_DONE:
        return _KNOWN_BUT_NOT_DONE[end]
    return "no prefix that is known" if _prefix(key) is None else "no parameter that is known"


_KNOWN_BUT_NOT_DONE = {
    "lokr_t1": "no version of LyCORIS writes or reads it",
    "lambda_layer": "T-LoRA, whose rank depends on the timestep, so that no weight does the same",
    "scalar": "a scale that LyCORIS itself leaves out when it loads; save the file again with it",
}


def _prefix(key: str) -> str | None:
    """The longest known prefix of a key, up to the module's name."""
    fitting = [prefix for prefix in PREFIXES if key.startswith(f"{prefix}_")]
    return max(fitting, key=len, default=None)


def _sites(modules: Mapping[str, Factors], base: Any, where: str) -> dict[str, str]:
    """The base's module for each of the file's."""
    wanted: dict[str, tuple[str, str]] = {}
    for module in modules:
        prefix = _prefix(f"{module}.") or ""
        rest = without_wrappers(module.removeprefix(f"{prefix}_"), is_underscored=True)
        wanted[module] = PREFIXES[prefix], rest
    if base is not None:
        return found_modules(wanted, base_model(base).modules, where)
    # A name of one word has no dot to lose.
    open_names = [module for module, (_, rest) in wanted.items() if "_" in rest]
    rests = [rest for _, rest in wanted.values()]
    if open_names or len(set(rests)) < len(rests):
        raise CheckpointError(
            f"{where}: in its {len(modules)} names dots became underscores "
            f"({(open_names or rests)[0]} …), so that the file alone does not say which modules it "
            f"is for. Give what it was trained on: {option('base', ..., of='load(path')}, "
            "its Hugging Face folder, its params, or a list of the names of its modules."
        )
    return {module: rest for module, (_, rest) in wanted.items()}


# What the parts of a pipeline are called in a file of kohya's. With a second text encoder the
# first one has a number too.
_PARTS = {
    "unet": "lora_unet",
    "transformer": "lora_unet",
    "diffusion_model": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}


def export_kohya(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    force: bool = False,
) -> Path:
    """Writes an adapter as kohya's scripts, LyCORIS and A1111 do: dots as underscores.

    Args:
        adapter: of LoRA, LoHa, LoKr, these with a norm, or plain differences. Its strength goes
            into alpha.
        path: the file, ``….safetensors``.
        prefix: what to put before each name: ``lora_unet``, ``lora_te``, ``lycoris``. By default
            what a site's first word says (``unet.…``, ``text_encoder_2.…``), which is then left
            out; and ``lora_unet`` where it says nothing.
        force: whether to replace a file that stands there.

    Returns:
        The path.

    Raises:
        UnsupportedError: if an update has no form there; `jaxmix.to_lora` makes a LoRA of it.
        AdapterError: if it is no adapter, or two of its sites would have one name.
        CheckpointError: if the place is taken, or can't be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from jaxmix.families import LoRA
        >>> ones = LoRA(np.ones((1, 3)), np.ones((2, 1)), scale=1.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     there = export_kohya(Adapter({"mid.to_q": ones}), folder + "/x.safetensors")
        ...     read_kohya(there, "again", base=["mid.to_q"]).sites
        ('mid.to_q',)

    Source: kohya-ss/sd-scripts, ``networks/lora.py`` (``save_weights``).
    """
    modules = module_tensors(adapter)
    names = {site: _written(site, tuple(modules), prefix) for site in modules}
    owners: dict[str, list[str]] = {}
    for site, name in names.items():
        owners.setdefault(name, []).append(site)
    if several := [f"{n}: {' and '.join(s)}" for n, s in owners.items() if len(s) > 1]:
        raise AdapterError(
            f"{adapter.name}: sites that would have one name, their dots as underscores:"
            f"{listing(several)}\nExport them with dots: jaxmix.converters.diffusers."
        )
    tensors: dict[str, Any] = {}
    for site, factors in modules.items():
        for parameter, tensor in with_plain_bias(factors).items():
            tensors[f"{names[site]}.{parameter}"] = tensor
    is_lora = all(set(factors) <= _OF_LORA for factors in modules.values())
    module = "networks.lora" if is_lora else "lycoris.kohya"
    return save_tensors(path, tensors, {"ss_network_module": module}, force=force)


_OF_LORA = {"lora_down.weight", "lora_up.weight", "alpha"}


def _written(site: str, sites: tuple[str, ...], prefix: str | None) -> str:
    """The name of a site in a file."""
    first, _, rest = site.partition(".")
    if prefix is not None:
        return f"{prefix}_{site.replace('.', '_')}"
    if first not in _PARTS or not rest:
        return f"lora_unet_{site.replace('.', '_')}"
    part = _PARTS[first]
    if part == "lora_te" and any(one.startswith("text_encoder_2.") for one in sites):
        part = "lora_te1"
    return f"{part}_{rest.replace('.', '_')}"
