"""PEFT's FourierFT and WaveFT: some coefficients of a transform, at positions from a seed."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.common.shapes import SiteTensors, required
from jaxmix.converters.adapters.common.site_values import as_float, common_value
from jaxmix.converters.adapters.common.values import FLAG, INTEGER, NUMBER, one_of
from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.peft_type import (
    ABOUT,
    SAVED,
    WHERE,
    ConfigFields,
    PeftContent,
    PeftType,
)
from jaxmix.converters.adapters.peft.same import equal_value, fan_in_fan_out, refuse_unless
from jaxmix.errors import ShapeError, to_lora_call
from jaxmix.families import FourierFT, WaveFT
from jaxmix.families.wavelets import WAVELETS

__all__ = ["FOURIERFT", "WAVEFT"]


def _fourierft(file: File, site: str, factors: SiteTensors) -> FourierFT:
    """FourierFT; the tensor has ``n_frequency`` elements."""
    (spectrum,) = required(factors, "fourierft_spectrum")
    config, fan = file.config.values, file.transposed
    indices, seed = (
        _positions(file, site, "fourierft_spectrum", spectrum),
        config["random_loc_seed"],
    )
    return FourierFT(spectrum, indices, config["scaling"], seed, fan)


def _waveft(file: File, site: str, factors: SiteTensors) -> WaveFT:
    """WaveFT; the number of coefficients is that of the tensor."""
    (spectrum,) = required(factors, "waveft_spectrum")
    config, fan = file.config.values, file.transposed
    wavelet = config["wavelet_family"] if config.get("use_idwt", True) else None
    indices, seed = _positions(file, site, "waveft_spectrum", spectrum), config["random_loc_seed"]
    return WaveFT(spectrum, indices, config["scaling"], wavelet, seed, fan)


def _positions(file: File, site: str, name: str, spectrum: Any) -> Any:
    """Returns the coefficients' rows and columns: the start of a permutation of all positions."""
    out_size, in_size = file.sizes(site)
    if spectrum.ndim != 1 or not 0 < spectrum.size <= out_size * in_size:
        raise ShapeError(
            f"{name} has shape {spectrum.shape}, expected (n,) with n from 1 to "
            f"{out_size * in_size}"
        )
    torch = file.torch("the positions of its coefficients")
    generator = torch.Generator().manual_seed(file.config.values["random_loc_seed"])
    flat = torch.randperm(out_size * in_size, generator=generator)[: spectrum.size].numpy()
    return np.stack([flat // in_size, flat % in_size]).astype(np.int32)


def _write_fourierft(updates: Mapping[str, Any]) -> PeftContent:
    counts = {site: update.spectrum.shape[0] for site, update in updates.items()}
    most, _ = common_value(counts)
    # Not the patterns of `common_value`: here PEFT requires a dot before them, or the whole name.
    patterns = {site: count for site, count in counts.items() if count != most}
    tensors = {f"{site}.fourierft_spectrum": up.spectrum for site, up in updates.items()}
    fields = {"n_frequency": most, "n_frequency_pattern": patterns}
    return PeftContent({**fields, **_common(updates)}, tensors)


def _write_waveft(updates: Mapping[str, Any]) -> PeftContent:
    counts = {site: update.spectrum.shape[0] for site, update in updates.items()}
    most, patterns = common_value(counts)
    wavelet = equal_value(updates, "wavelet_family", lambda update: update.wavelet)
    fields = {
        "n_frequency": most,
        "n_frequency_pattern": patterns,
        "proportional_parameters": False,
        "use_idwt": wavelet is not None,
        "wavelet_family": wavelet or "db1",
    }
    tensors = {f"{site}.waveft_spectrum": up.spectrum for site, up in updates.items()}
    return PeftContent({**fields, **_common(updates)}, tensors)


def _common(updates: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both types; PEFT states positions only by a seed."""
    problem = (
        "PEFT stores a seed instead of positions, and those of these updates come from no seed. "
        f"Export them as LoRA ({to_lora_call()})"
    )
    refuse_unless(updates, lambda update: update.seed is not None, problem)
    return {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "random_loc_seed": equal_value(updates, "random_loc_seed", lambda update: update.seed),
        "scaling": equal_value(updates, "scaling", lambda update: as_float(update.scale)),
    }


def _no_wavelet(values: Mapping[str, Any]) -> Iterator[str]:
    """Refuses wavelets without filters in PEFT, and its coif4 and coif5, which are not coiflets."""
    name = values.get("wavelet_family", "db1")
    if values.get("use_idwt", True) and name not in WAVELETS:
        yield (
            f"wavelet_family = {name!r}: jaxmix has the filters of {', '.join(WAVELETS)}. PEFT's "
            "numbers for coif4 and coif5 are not coiflets, and it has no filters for others. "
            "Merge it with PEFT (merge_and_unload) and use the merged model as the base"
        )


def _fields(name: str, supported: Mapping[str, Any], harmless: frozenset[str]) -> ConfigFields:
    return ConfigFields(
        {
            "bias": one_of("none", "all", f"{name}_only"),
            "fan_in_fan_out": FLAG,
            "random_loc_seed": INTEGER,
            "scaling": NUMBER,
            **SAVED,
            **supported,
        },
        ABOUT | WHERE | {"init_weights", "n_frequency", "n_frequency_pattern"} | harmless,
    )


FOURIERFT = PeftType(
    _fields("fourier", {}, frozenset()), ("fourierft_spectrum",), _fourierft, _write_fourierft
)
WAVEFT = PeftType(
    _fields(
        "waveft",
        {"use_idwt": FLAG, "wavelet_family": one_of(*WAVELETS)},
        frozenset({"proportional_parameters"}),
    ),
    ("waveft_spectrum",),
    _waveft,
    _write_waveft,
    find_problems=_no_wavelet,
)
