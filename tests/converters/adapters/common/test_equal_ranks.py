"""LoRAs are written with one rank and one scale, so every reader computes the same."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmix
from jaxmix import Adapter
from jaxmix.converters.adapters.common.equal_ranks import with_equal_ranks
from jaxmix.errors import UnsupportedError
from jaxmix.families import KaSA, LoRA, Update

from ..peft.test_export import CONFIG, FORMS, LOOSE, WEIGHTS, experts, lora, n, same


def delta(config: dict[str, Any], tensors: dict[str, Any], key: str, rank: str) -> np.ndarray:
    """A site's γBA for a reader that uses ``r``, or for one that uses the tensor's rank."""
    a, b = (np.asarray(tensors[f"{key}.lora_{x}.weight"], np.float64) for x in "AB")
    denominator = config["r"] if rank == "r" else len(a)
    # llama.cpp reads an alpha of 0 as a scale of 1.
    scale = config["lora_alpha"] / denominator if config["lora_alpha"] else 1.0
    return scale * (b.reshape(len(b), -1) @ a.reshape(len(a), -1))


def truth(update: Any, strength: float = 1.0) -> np.ndarray:
    """``sγBA``."""
    a, b = (np.asarray(x, np.float64) for x in (update.a, update.b))
    return strength * float(update.scale) * (b @ a)


def written(adapter: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the tensors from `export_peft`."""
    out = jaxmix.export_peft(adapter, folder, **options)
    return json.loads((out / CONFIG).read_text()), load_file(out / WEIGHTS)


UNEVEN: dict[str, dict[str, Update]] = {
    "ranks and alphas": LOOSE,
    "one of scale 0": {"q": lora(), "k": lora(scale=0.0), "v": lora(rank=5, scale=0.0)},
    "all of scale 0": {"q": lora(scale=0.0), "k": lora(scale=0.0)},
    "negative": {"q": lora(scale=-0.5), "k": lora(rank=1, scale=0.5)},
    "arrays": {"q": lora(scale=jnp.float32(0.3)), "k": lora(rank=1, scale=np.float64(0.7))},
    "conv": {"one": lora(6, 12, kernel=(3,), scale=2.0), "two": lora(6, 60, 5, kernel=(3, 5))},
}


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", UNEVEN)
def test_all_readers_agree(name: str, strength: float, tmp_path: Path) -> None:
    """Readers that use ``r``, the tensor's own rank, or no patterns compute the same."""
    updates = UNEVEN[name]
    config, tensors = written(strength * Adapter(updates), tmp_path / "out")
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert config["r"] == max(update.a.shape[0] for update in updates.values())  # pyright: ignore[reportAttributeAccessIssue]
    assert config["lora_alpha"] and not config["use_rslora"]
    for site, update in updates.items():
        for rank in ("r", "own"):
            output = delta(config, tensors, f"base_model.model.{site}", rank)
            np.testing.assert_allclose(output, truth(update, strength), rtol=1e-6, atol=1e-7)


def test_uneven_ranks_of_a_truncated_mix(tmp_path: Path) -> None:
    """`to_lora` cuts by energy with scale 1 everywhere, so the factors stay bit for bit."""
    params = {"q.weight": n(8, 6), "k.weight": n(7, 6), "v.weight": n(5, 5)}
    sizes = {site: params[f"{site}.weight"].shape for site in "qkv"}
    updates = {
        site: lora(*sizes[site], rank=rank) for site, rank in zip("qkv", (1, 5, 3), strict=True)
    }
    truncated = jaxmix.to_lora(Adapter(updates), params, rank=0.8)
    ranks = {site: update.a.shape[0] for site, update in truncated.updates.items()}  # pyright: ignore[reportAttributeAccessIssue]
    assert len(set(ranks.values())) > 1
    config, tensors = written(truncated, tmp_path / "out")
    highest = max(ranks.values())
    assert (config["r"], config["lora_alpha"]) == (highest, highest)
    for site, rank in ranks.items():
        a, b = (tensors[f"base_model.model.{site}.lora_{x}.weight"] for x in "AB")
        update: Any = truncated.updates[site]
        np.testing.assert_array_equal(a[:rank], update.a)
        np.testing.assert_array_equal(b[:, :rank], update.b)
        assert a.shape[0] == b.shape[1] == highest and not a[rank:].any() and not b[:, rank:].any()


EVEN = [name for name, updates in FORMS.items() if name not in ("ranks and alphas", "conv")]
EVEN = [
    name
    for name in EVEN
    if len({(u.a.shape[-2], float(u.scale)) for u in FORMS[name].values() if hasattr(u, "a")}) == 1  # pyright: ignore[reportAttributeAccessIssue]
    and "experts" not in name
]


@pytest.mark.parametrize("name", EVEN)
def test_equal_ranks_are_unchanged(name: str, tmp_path: Path) -> None:
    """Nothing is padded or multiplied."""
    folder = jaxmix.export_peft(Adapter(FORMS[name]), tmp_path / "out")
    same(jaxmix.load(folder).updates, FORMS[name])


def test_most_frequent_scale_is_kept(tmp_path: Path) -> None:
    """Its factors are kept bit for bit; others are rounded once, together with their biases."""
    half = ml_dtypes.bfloat16
    rare = LoRA(n(2, 4, dtype=half), n(6, 2, dtype=half), 0.7, bias=n(6, dtype=half))
    frequent = LoRA(n(2, 4, dtype=half), n(6, 2, dtype=half), 0.3, bias=n(6, dtype=half))
    updates = with_equal_ranks({"a": rare, "b": frequent, "c": frequent})
    assert updates["b"] is frequent and updates["a"].scale == 0.3
    factor = 0.7 / 0.3
    for name in ("b", "bias"):
        exact = np.asarray(getattr(rare, name), np.float64) * factor
        np.testing.assert_array_equal(getattr(updates["a"], name), exact.astype(half))
    assert updates["a"].a is rare.a


def test_embeddings_and_experts() -> None:
    """For an embedding PEFT's B is our A; for experts the rank is the middle axis."""
    updates = with_equal_ranks(
        {
            "embed": lora(9, 4, embedding=True, scale=3.0),
            "up": experts(10, 4, rank=3),
            "q": lora(rank=3),
        }
    )
    embed: Any = updates["embed"]
    plain = lora(9, 4, embedding=True)
    np.testing.assert_array_equal(embed.a[:2], 2 * plain.a)
    np.testing.assert_array_equal(embed.b[:, :2], plain.b)
    assert embed.a.shape == (3, 4) and embed.scale == 1.5
    small: Any = with_equal_ranks({"up": experts(10, 4), "q": lora(rank=3)})["up"]
    assert small.a.shape == (3, 3, 4) and small.b.shape == (3, 10, 3)
    np.testing.assert_array_equal(small.b @ small.a, experts(10, 4).b @ experts(10, 4).a)


def test_kasa_keeps_its_ranks(tmp_path: Path) -> None:
    """PEFT truncates the base by KaSA's rank, so padding with zeros would change it."""
    sites = {"q": KaSA(n(2, 4), n(6, 2), n(2), 1.5), "k": KaSA(n(3, 4), n(6, 3), n(3), 1.0)}
    folder = jaxmix.export_peft(Adapter(sites), tmp_path / "out")
    same(jaxmix.load(folder).updates, sites)


def test_scale_overflow_is_refused() -> None:
    """The error lists the sites and a remedy."""
    big = LoRA(n(2, 4), n(6, 2).astype(np.float16), 1e6)
    with pytest.raises(UnsupportedError) as caught:
        with_equal_ranks({"a": big, "b": lora(), "c": lora()})
    assert str(caught.value) == (
        "factors that become too large for their dtype where all sites get the scale "
        "1.5:\n  a: 1000000.0 · B in float16\nCast the adapter to float32, or write "
        "the scales as patterns in the config: patterns=True."
    )


@pytest.mark.parametrize("rank", [3, 5, 7, 11, 24, 1000])
def test_alpha_reproduces_the_scale(rank: int, tmp_path: Path) -> None:
    """It agrees to the last bit of float64 where no alpha is exact, as for rslora's 16/√r."""
    for i, scale in enumerate((16 / rank**0.5, 0.1, 1 / 3, 2.0, float(np.float32(0.1)))):
        folder = jaxmix.export_peft(Adapter({"q": lora(rank=rank, scale=scale)}), tmp_path / f"{i}")
        update: Any = jaxmix.load(folder).updates["q"]
        assert abs(update.scale - scale) <= np.spacing(scale)
        assert np.float32(update.scale) == np.float32(scale)
