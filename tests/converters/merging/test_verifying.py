"""`verify_merge` and ``verify=True``: proven, failed and inconclusive."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.merging import Verified, merge_checkpoint, pipeline, verify_merge
from jaxmix.errors import CheckpointError
from jaxmix.families import LoRA

from ...messages import full_text
from ..bases import Adapters, contents, load, mixed, save_base

BF16 = ml_dtypes.bfloat16
Q = "model.layers.{}.q_proj.weight"


def failed(proof: Verified) -> dict[str, str]:
    """The tensors that failed, with the reasons."""
    return {tensor.tensor: tensor.reason for tensor in proof.tensors if tensor.verdict == "failed"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16, np.float64])
def test_correct_merge_is_proven(
    dtype: Any, shards: int, adapters: Adapters, tmp_path: Path
) -> None:
    """Changed tensors are proven by replay and residual, the rest byte for byte."""
    base = save_base(tmp_path / "base", shards=shards, dtype=dtype)
    reports: list[tuple[int, int, str]] = []
    merged = merge_checkpoint(
        base,
        mixed(adapters),
        tmp_path / "out",
        verify=True,
        progress=lambda *report: reports.append(report),
    )
    proof = verify_merge(base, mixed(adapters), tmp_path / "out")
    assert proof == merged.verified and proof.ok
    assert (proof.proven, proof.inconclusive, proof.failed) == (10, 0, 0) and not proof.problems
    for tensor in proof.tensors:
        is_changed = tensor.tensor in merged.changed
        assert (tensor.residual is not None) == (tensor.kept is not None) == is_changed
        assert not tensor.differing and tensor.reason == (
            "base plus mix, by replay and by residual"
            if is_changed
            else "equal to the base, byte for byte"
        )
        if is_changed:
            assert tensor.residual is not None and tensor.residual <= 1
            assert tensor.kept is not None and abs(tensor.kept - 1) < 1e-2
    complete = [report for report in reports if report[0] == merged.size]
    assert reports[-1][:2] == (merged.size, merged.size) and len(complete) >= 2


def test_other_adapters(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """Swapped, additional or differently scaled adapters: each tensor that they touch fails."""
    lora, loha, oft = (jaxmix.load(adapters[name]) for name in ("lora", "loha", "oft"))
    merge_checkpoint(base, [lora, oft], tmp_path / "out")
    q = {Q.format(i) for i in range(2)}
    biases = {name.replace("weight", "bias") for name in q}
    down = {"model.layers.0.down_proj.weight", "model.layers.1.down_proj.weight"}
    cases: list[tuple[list[Any], set[str]]] = [
        ([loha, oft], q | biases),
        ([0.999 * lora, oft], q | biases),
        ([oft, lora], q),
        ([lora, oft, loha], q),
        ([lora], q | down),
        ([], q | biases | down),
    ]
    for adapters_now, failing in cases:
        proof = verify_merge(base, adapters_now, tmp_path / "out")
        assert not proof.ok and failed(proof).keys() == failing
        text = proof.text
        assert text.startswith(f"{len(failing)} differences from base plus mix:\n  model.")
    for reason in failed(verify_merge(base, [oft, lora], tmp_path / "out")).values():
        assert "from a replay" in reason and "times what rounding explains" in reason


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("name", [Q.format(1), "model.norm.weight", "model.positions"])
def test_changed_bit_is_found(name: str, dtype: Any, adapters: Adapters, tmp_path: Path) -> None:
    """The lowest bit of one number changes: exactly this tensor fails."""
    base = save_base(tmp_path / "base", dtype=dtype)
    merge_checkpoint(base, mixed(adapters), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors[name].reshape(-1).view(np.uint8)[0] ^= 1
    save_file(tensors, file, metadata={"format": "pt", "made by": "hand"})
    proof = verify_merge(base, mixed(adapters), tmp_path / "out")
    (reason,) = failed(proof).values()
    assert failed(proof).keys() == {name} and proof.proven == 9
    if name != Q.format(1):
        assert reason == "1 byte differs from the base's"
    elif dtype == np.float32:
        assert reason == (
            "1 number differs from a replay, within rounding of base plus mix. Was it merged "
            "by another version or on another device?"
        )


def test_effects_below_rounding_are_inconclusive(adapters: Adapters, tmp_path: Path) -> None:
    """A strength that does not change bfloat16 is inconclusive; in float32 it is proven."""
    lora = jaxmix.load(adapters["lora"])
    for dtype, strength, verdict in (
        (BF16, 1e-5, "inconclusive"),
        (np.float32, 1e-4, "proven"),
        (BF16, 0.0, "proven"),
    ):
        base = save_base(tmp_path / f"{np.dtype(dtype)}-{strength}", dtype=dtype)
        out = tmp_path / f"out-{np.dtype(dtype)}-{strength}"
        proof = merge_checkpoint(base, strength * lora, out, verify=True).verified
        assert proof is not None and proof.ok
        changed = [
            tensor for tensor in proof.tensors if tensor.tensor in {Q.format(0), Q.format(1)}
        ]
        assert [tensor.verdict for tensor in changed] == [verdict, verdict]
        if verdict == "inconclusive":
            assert proof.inconclusive == 4 and load(out)[Q.format(0)].tobytes() == (
                load(base)[Q.format(0)].tobytes()
            )
            assert changed[0].reason == "rounding to BF16 left 0.0% of the mix's effect here"
            # The unchanged base is a valid result of such a mix; that of another mix is not.
            assert verify_merge(base, [], out).ok
            assert not verify_merge(base, lora, out).ok


def _tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        metadata = {"format": "pt", "made by": "hand"}
        save_file(tensors, folder / "model.safetensors", metadata=metadata)

    return work


def _cast(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)


def _metadata(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def _moved(folder: Path) -> None:
    """Keeps tensors and metadata, and pads the header with spaces."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size] + b" " * 8
    text = len(header).to_bytes(8, "little") + header + data[8 + size :]
    (folder / "model.safetensors").write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_tensors(lambda t: t.pop("model.norm.weight")), ["model.norm.weight: it is missing"]),
        (_tensors(lambda t: t.update(more=np.ones(2))), ["model.safetensors: more is unexpected"]),
        (_tensors(_cast), [r"model.norm.weight: it is F16 (6,), expected F32 (6,)"]),
        (_metadata, ["model.safetensors: metadata is {}, expected {'"]),
        (_moved, ["model.safetensors: the header differs, with the tensors at other offsets"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json is missing"]),
        (lambda f: (f / "config.json").write_text("{}"), ["config.json differs from the base's"]),
        (lambda f: (f / "x.safetensors").touch(), ["x.safetensors is unexpected"]),
        (lambda f: (f / "adapter_config.json").touch(), ["adapter_config.json is unexpected"]),
        (
            lambda f: (f / "model.safetensors").unlink(),
            ["model.safetensors is missing", "lm_head.weight: it is missing"],
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"x" * 99),
            ["is not a complete safetensors f"],
        ),
    ],
)
def test_unexpected_and_missing_parts_are_named(
    damage: Callable[[Path], object],
    expected: list[str],
    base: Path,
    adapters: Adapters,
    tmp_path: Path,
) -> None:
    """A part that is added, missing or different is named."""
    merge_checkpoint(base, mixed(adapters), tmp_path / "out")
    damage(tmp_path / "out")
    proof = verify_merge(base, mixed(adapters), tmp_path / "out")
    assert not proof.ok and all(text in proof.text for text in expected)


def test_index_differs(sharded: Path, adapters: Adapters, tmp_path: Path) -> None:
    """It is compared like other side files."""
    merge_checkpoint(sharded, mixed(adapters), tmp_path / "out")
    index = tmp_path / "out" / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=1))
    proof = verify_merge(sharded, mixed(adapters), tmp_path / "out")
    assert proof.problems == (f"{index.name} differs from the base's",) and proof.failed == 0


def test_failed_verification_keeps_the_old_output(
    base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk loses a bit: the old output stays, and the new one is removed."""
    merge_checkpoint(base, [], tmp_path / "out")
    before = contents(tmp_path / "out")
    plain = pipeline.write_bytes

    def losing(data: Any, *args: Any) -> int:
        data = bytearray(data)
        data[0] ^= 1
        return plain(data, *args)

    monkeypatch.setattr(pipeline, "write_bytes", losing)
    lines = "".join(
        f"\n  model.layers.{i}.{name}: 1 number differs from a replay, within rounding of base "
        "plus mix. Was it merged by another version or on another device?"
        for i in (0, 1)
        for name in ("down_proj.weight", "q_proj.bias", "q_proj.weight")
    )
    message = f"{tmp_path}/out was not written: 6 differences from base plus mix:{lines}"
    with pytest.raises(CheckpointError, match=full_text(message)):
        merge_checkpoint(base, mixed(adapters), tmp_path / "out", force=True, verify=True)
    assert contents(tmp_path / "out") == before and not list(tmp_path.glob("out.*"))


def test_untied_and_read_bases(adapters: Adapters, tmp_path: Path) -> None:
    """An untied head; DoRA, which reads the base; a bias whose map reads the weight."""
    tied = save_base(tmp_path / "tied", shards=3, tied=True, dtype=BF16)
    embedding = jaxmix.load(adapters["embedding"])
    merge_checkpoint(tied, embedding, tmp_path / "1", untie=True)
    assert verify_merge(tied, embedding, tmp_path / "1", untie=True).ok
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    lora = LoRA(draw(2, 6), draw(8, 2), 0.5)
    dora = jaxmix.Adapter({"model.layers.0.q_proj": LoRA(lora.a, lora.b, 0.5, magnitude=draw(8))})
    base = save_base(tmp_path / "base", dtype=BF16)
    proof = merge_checkpoint(base, [dora, mixed(adapters)], tmp_path / "2", verify=True).verified
    assert proof is not None and proof.ok and proof.proven == 10
    assert not verify_merge(base, [0.9 * dora, mixed(adapters)], tmp_path / "2").ok


def test_sites_that_share_a_tensor(tmp_path: Path) -> None:
    """The sites are at indexes and in other axes of one tensor."""
    rng = np.random.default_rng(3)
    qk = np.asarray(rng.normal(size=(5, 8)), np.float32)
    (tmp_path / "base").mkdir()
    save_file({"0.qk": qk, "0.v": qk}, tmp_path / "base" / "model.safetensors")
    rules = (
        jaxmix.Rule(r"l\.(\d+)\.q", r"\1.qk", "i o -> o i", index=":, 0:6"),
        jaxmix.Rule(r"l\.(\d+)\.k", r"\1.qk", "i o -> o i", index=":, 6:8"),
    )
    table = jaxmix.Layout("fused", rules)

    def lora(out: int) -> LoRA:
        a, b = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 5), (out, 2)))
        return LoRA(a, b, 0.5)

    adapter = jaxmix.Adapter({"l.0.q": lora(6), "l.0.k": lora(2)})
    merge_checkpoint(tmp_path / "base", adapter, tmp_path / "out", layout=table, verify=True)
    assert not verify_merge(tmp_path / "base", -adapter, tmp_path / "out", layout=table).ok


def test_invalid_outputs(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """The output is missing, or a file although the base is a folder."""
    for out, description in (
        (tmp_path / "nothing", "a folder"),
        (base / "config.json", "a folder"),
    ):
        message = full_text(
            f"{out} is not a merged checkpoint, expected {description}, as the base is. Check the "
            "path."
        )
        with pytest.raises(CheckpointError, match=message):
            verify_merge(base, mixed(adapters), out)
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"{tmp_path}/base is not a merged checkpoint, expected a "
            "safetensors file, as the base is. Check the path."
        ),
    ):
        verify_merge(base / "model.safetensors", mixed(adapters), base)
