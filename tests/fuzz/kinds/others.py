"""Adapters of kohya, LyCORIS, diffusers, mlx, and jaxmix's own mixes."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..case import Adapter, Case
from ..tensorfile import Tensor, encoded, pack
from . import bases
from .bases import drawn

__all__ = ["OTHERS"]

_SITES = {"mid.attn_1.to_q": (6, 4), "proj": (6, 4)}
_AB: Mapping[str, tuple[int, ...]] = {"lora_down.weight": (2, 4), "lora_up.weight": (6, 2)}
_HADA = {f"hada_w{i}_{x}": (6, 2) if x == "a" else (2, 4) for i in "12" for x in "ab"}
_FORMS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "lora": _AB,
    "dora": {**_AB, "dora_scale": (6, 1)},
    "loha": _HADA,
    "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2)},
}


def _factors(form: str, site: str, dtype: str) -> dict[str, Tensor]:
    """Returns one module's tensors, with its alpha."""
    shapes = _FORMS[form]
    factors = {}
    for name, shape in shapes.items():
        numbers = drawn(site + name, *shape)
        factors[name] = encoded(1 + abs(numbers) if name == "dora_scale" else numbers, dtype)
    factors["alpha"] = encoded(np.float32(1.5), dtype)
    return factors


def _kohya(form: str, dtype: str = "F16") -> Case:
    tensors = {
        f"lora_unet_{site.replace('.', '_')}.{name}": tensor
        for site in _SITES
        for name, tensor in _factors(form, site, dtype).items()
    }
    if form == "lora":
        down, up = drawn("convdown", 2, 4, 3, 1), drawn("convup", 6, 2, 1, 1)
        tensors["lora_unet_conv.lora_down.weight"] = encoded(down, dtype)
        tensors["lora_unet_conv.lora_up.weight"] = encoded(up, dtype)
    data = pack(tensors, {"ss_network_dim": "2", "ss_network_alpha": "1.5"})
    adapter = Adapter(
        "kohya", "adapter.safetensors", 0.75 if form == "lora" else 1.0, {"base": "BASE"}
    )
    return Case({"adapter.safetensors": data, **bases.image_file()}, (adapter,), "base.safetensors")


def _diffusers(with_metadata: bool) -> Case:
    tensors, metadata = {}, {"format": "pt"}
    for site in _SITES:
        for name, tensor in _factors("lora", site, "BF16").items():
            new = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}.get(name)
            if new or not with_metadata:
                tensors[f"unet.{site}.{new or name}"] = tensor
    if with_metadata:
        fields = {"unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {"proj": 5}}
        metadata["lora_adapter_metadata"] = json.dumps(fields)
    files = {"adapter.safetensors": pack(tensors, metadata), **bases.image_file("BF16")}
    return Case(files, (Adapter("diffusers", "adapter.safetensors"),), "base.safetensors")


def _mlx(kind: str) -> Case:
    tensors = {}
    for site, (out, size) in bases.MODULES.items():
        if "down_proj" in site:
            continue
        tensors[f"{site}.lora_a"] = encoded(drawn(site + "a", size, 2))
        tensors[f"{site}.lora_b"] = encoded(drawn(site + "b", 2, out))
        if kind == "dora":
            tensors[f"{site}.m"] = encoded(1 + abs(drawn(site + "m", out)))
    fields = {
        "fine_tune_type": kind, "num_layers": 2,
        "lora_parameters": {"rank": 2, "scale": 2.5, "dropout": 0.0},
    }  # fmt: skip
    files = {
        "adapter/adapters.safetensors": pack(tensors),
        "adapter/adapter_config.json": json.dumps(fields).encode(),
        **bases.folder(),
    }
    return Case(files, (Adapter("mlx", "adapter"),), "base")


def _mix() -> Case:
    """Returns a mix written by jaxmix, since only jaxmix computes the hashes."""
    import jaxmix
    from jaxmix.families import OFT, LoHa, LoRA

    first, second = {}, {}
    for site, (out, size) in bases.MODULES.items():
        a, b = drawn(site + "a", 2, size), drawn(site + "b", out, 2)
        if "down" in site:
            first[site] = LoHa(b, a, drawn(site + "c", out, 2), drawn(site + "d", 2, size), 0.5)
        else:
            first[site] = LoRA(a, b, 1.5)
        second[site] = OFT(0.3 * drawn(site + "g", size // 2, 1), terms=5)
    mixed = jaxmix.mix(
        0.5 * jaxmix.Adapter(first, name="one", metadata={"task_type": "CAUSAL_LM"}),
        jaxmix.Adapter(second, name="two"),
    )
    with tempfile.TemporaryDirectory() as folder:
        jaxmix.save(mixed, f"{folder}/mix")
        files = {
            f"adapter/{path.name}": path.read_bytes()
            for path in sorted(Path(folder, "mix").iterdir())
        }
    return Case({**files, **bases.folder()}, (Adapter("mix", "adapter"),), "base")


OTHERS = {
    **{f"kohya-{form}": (lambda form=form: _kohya(form)) for form in _FORMS},
    "diffusers": lambda: _diffusers(False),
    "diffusers-metadata": lambda: _diffusers(True),
    "mlx-lora": lambda: _mlx("lora"),
    "mlx-dora": lambda: _mlx("dora"),
    "mix": _mix,
}
