"""What a file and its base provide for all sites."""

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmix.converters.adapters.common.base_model import base_model
from jaxmix.converters.adapters.peft.file import Config, File
from jaxmix.errors import CheckpointError

from ....messages import full_text


def test_missing_torch_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states what the file omits, how PEFT obtains it, and the remedy."""
    file = File(Config(tmp_path / "adapter_config.json", "VERA", {}))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError) as caught:
        file.torch("A and B")
    assert str(caught.value) == (
        f"{tmp_path} leaves out A and B, which PEFT draws again from a seed with "
        f"torch's generator. Install torch (pip install 'jaxmix-peft[torch]') and "
        f"load the adapter once; jaxmix.save includes them, so torch is not needed "
        f"again."
    )
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path} leaves out signs, which PEFT takes from the SVD. Install torch "
            "(pip install 'jaxmix-peft[torch]') and load the adapter once; jaxmix.save includes "
            "them, so torch is not needed again."
        ),
    ):
        file.torch("signs", "takes from the SVD")


@pytest.mark.parametrize("part", ["weight", "bias", "shape"])
def test_missing_base_is_reported(part: str, tmp_path: Path) -> None:
    """The error says how to pass a base."""
    file = File(Config(tmp_path / "adapter_config.json", "VERA", {}))
    with pytest.raises(CheckpointError) as caught:
        getattr(file, part)("layer.proj")
    assert str(caught.value) == (
        "a VERA adapter can't be read without the base's weight at layer.proj. Pass "
        "the base: jaxmix.load(…, base=…), its Hugging Face folder or its params. An "
        "adapter that jaxmix.save writes does not need it again."
    )


CONFIG = Path("adapter_config.json")


def file_of(base: dict[str, tuple[int, ...]], *, is_transposed: bool) -> File:
    """The file of an adapter with a base of these shapes."""
    config = Config(CONFIG, "LORA", {"fan_in_fan_out": is_transposed})
    return File(config, base=base_model({name: np.ones(shape) for name, shape in base.items()}))


def test_first_matching_pattern_counts() -> None:
    """Patterns match the end of a site's name; without patterns the field holds for all sites."""
    patterns = {"q": 3, "0.q": 4, "k": 5}
    config = Config(CONFIG, "LORA", {"r": 2, "rank_pattern": patterns, "alpha_pattern": None})
    sites = ("layers.0.q", "layers.0.k", "layers.0.qk", "k")
    assert [config.by_site("rank_pattern", "r", site) for site in sites] == [3, 5, 2, 5]
    assert config.by_site("alpha_pattern", "r", "q") == config.by_site("absent", "r", "q") == 2


@pytest.mark.parametrize(("value", "expected"), [(True, True), (None, False), (False, False)])
def test_absent_and_null_flags_are_off(value: bool | None, expected: bool) -> None:
    """As in PEFT's older configs."""
    config = Config(CONFIG, "LORA", {"use_dora": value})
    assert config.flag("use_dora") is expected and config.flag("use_rslora") is False


def test_orientation_is_unknown_if_the_flag_is_on() -> None:
    """The flag may be that of another layer; a square weight has the same sizes either way."""
    shapes = {"h.0.c_attn.weight": (6, 4), "q.weight": (6, 4), "h.0.c_proj.weight": (4, 4)}
    on, off = (file_of(shapes, is_transposed=flag) for flag in (True, False))
    assert (on.transposed, off.transposed) == (None, False)
    assert off.sizes("q") == (6, 4) and not off.is_conv1d("q")
    assert on.sizes("h.0.c_proj") == (4, 4)
    message = full_text(
        "whether the weight at h.0.c_attn is stored as (out, in) or (in, out) is stated neither "
        "in a LORA adapter's file nor in the params given as base. Pass a base with its biases, or "
        "its folder with config.json"
    )
    with pytest.raises(CheckpointError, match=message):
        on.sizes("h.0.c_attn")


def test_bias_shows_the_orientation() -> None:
    """It has as many numbers as the layer has outputs."""
    file = file_of({"c.weight": (4, 6), "c.bias": (6,)}, is_transposed=True)
    assert file.is_conv1d("c") and file.sizes("c") == (6, 4)
    assert file.shape("c") == (4, 6)
