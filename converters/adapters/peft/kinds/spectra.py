"""PEFT's FourierFT and WaveFT: a few numbers of a transform, at positions drawn from a seed."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxmix.converters.adapters.peft.file import File
from jaxmix.converters.adapters.peft.kind import ABOUT, SAVED, WHERE, Fields, Kind, Written
from jaxmix.converters.adapters.peft.patterns import number, spread
from jaxmix.converters.adapters.peft.same import fan_in_fan_out, same, unless
from jaxmix.converters.adapters.peft.shapes import Factors, need
from jaxmix.converters.adapters.peft.values import FLAG, INTEGER, NUMBER, one_of
from jaxmix.errors import ShapeError
from jaxmix.families import FourierFT, WaveFT
from jaxmix.families.wavelets import WAVELETS

__all__ = ["FOURIERFT", "WAVEFT"]


def _fourierft(file: File, site: str, factors: Factors) -> FourierFT:
    """FourierFT; the config's ``n_frequency`` is the tensor's size."""
    (spectrum,) = need(factors, "fourierft_spectrum")
    said, fan = file.config.values, file.transposed
    indices, seed = _positions(file, site, "fourierft_spectrum", spectrum), said["random_loc_seed"]
    return FourierFT(spectrum, indices, said["scaling"], seed, fan)


def _waveft(file: File, site: str, factors: Factors) -> WaveFT:
    """WaveFT; how many numbers a site has the tensor says, in whatever proportion they are."""
    (spectrum,) = need(factors, "waveft_spectrum")
    said, fan = file.config.values, file.transposed
    wavelet = said["wavelet_family"] if said.get("use_idwt", True) else None
    indices, seed = _positions(file, site, "waveft_spectrum", spectrum), said["random_loc_seed"]
    return WaveFT(spectrum, indices, said["scaling"], wavelet, seed, fan)


def _positions(file: File, site: str, name: str, spectrum: Any) -> Any:
    """The rows and columns of the numbers: the first ones of a permutation of the whole weight."""
    out_size, in_size = file.sizes(site)
    if spectrum.ndim != 1 or not 0 < spectrum.size <= out_size * in_size:
        raise ShapeError(
            f"{name} has shape {spectrum.shape}, expected (n,) with n from 1 to "
            f"{out_size * in_size}"
        )
    torch = file.torch("the positions of its numbers")
    generator = torch.Generator().manual_seed(file.config.values["random_loc_seed"])
    flat = torch.randperm(out_size * in_size, generator=generator)[: spectrum.size].numpy()
    return np.stack([flat // in_size, flat % in_size]).astype(np.int32)


def _write_fourierft(updates: Mapping[str, Any]) -> Written:
    counts = {site: update.spectrum.shape[0] for site, update in updates.items()}
    most, _ = spread(counts)
    # Not spread's patterns: PEFT's must have a dot before them here, or be the whole name.
    patterns = {site: count for site, count in counts.items() if count != most}
    tensors = {f"{site}.fourierft_spectrum": up.spectrum for site, up in updates.items()}
    fields = {"n_frequency": most, "n_frequency_pattern": patterns}
    return Written({**fields, **_common(updates)}, tensors)


def _write_waveft(updates: Mapping[str, Any]) -> Written:
    counts = {site: update.spectrum.shape[0] for site, update in updates.items()}
    most, patterns = spread(counts)
    wavelet = same(updates, "wavelet_family", lambda update: update.wavelet)
    fields = {
        "n_frequency": most,
        "n_frequency_pattern": patterns,
        "proportional_parameters": False,
        "use_idwt": wavelet is not None,
        "wavelet_family": wavelet or "db1",
    }
    tensors = {f"{site}.waveft_spectrum": up.spectrum for site, up in updates.items()}
    return Written({**fields, **_common(updates)}, tensors)


def _common(updates: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of both types; PEFT has no way to say positions but by a seed."""
    said = (
        "PEFT draws the positions from a seed and stores none; those of these come from no seed. "
        "Export them as LoRA (jaxmix.to_lora)"
    )
    unless(updates, lambda update: update.seed is not None, said)
    return {
        "fan_in_fan_out": fan_in_fan_out(updates),
        "random_loc_seed": same(updates, "random_loc_seed", lambda update: update.seed),
        "scaling": same(updates, "scaling", lambda update: number(update.scale)),
    }


def _no_wavelet(values: Mapping[str, Any]) -> Iterator[str]:
    """PEFT names more wavelets than it has filters for, and its coif4 and coif5 are none."""
    name = values.get("wavelet_family", "db1")
    if values.get("use_idwt", True) and name not in WAVELETS:
        yield (
            f"wavelet_family = {name!r}: jaxmix makes the filters of {', '.join(WAVELETS)}. PEFT's "
            "numbers for coif4 and coif5 are those of no coiflet, and for others it has none. "
            "Merge it with PEFT (merge_and_unload) and use the merged model as the base"
        )


def _fields(name: str, honoured: Mapping[str, Any], harmless: frozenset[str]) -> Fields:
    return Fields(
        {
            "bias": one_of("none", "all", f"{name}_only"),
            "fan_in_fan_out": FLAG,
            "random_loc_seed": INTEGER,
            "scaling": NUMBER,
            **SAVED,
            **honoured,
        },
        ABOUT | WHERE | {"init_weights", "n_frequency", "n_frequency_pattern"} | harmless,
    )


FOURIERFT = Kind(
    _fields("fourier", {}, frozenset()), ("fourierft_spectrum",), _fourierft, _write_fourierft
)
WAVEFT = Kind(
    _fields(
        "waveft",
        {"use_idwt": FLAG, "wavelet_family": one_of(*WAVELETS)},
        frozenset({"proportional_parameters"}),
    ),
    ("waveft_spectrum",),
    _waveft,
    _write_waveft,
    judged=_no_wavelet,
)
