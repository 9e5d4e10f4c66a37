"""A short run of the fuzzer, the inputs that once revealed faults, and tests of the fuzzer."""

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

import jaxmix
from jaxmix.converters.adapters.peft.file import Config

from . import judging
from .judging import FAULTS, Verdict, judge
from .kinds import KINDS
from .mutations import mutated
from .running import Tally, inputs, judged_here, run, table
from .seeds import add_seeds, seeds
from .tensorfile import BadFileError, Tensor, encoded, pack, unpack

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
# For each kind the valid input, and its first changes. Longer runs: `make fuzz`.
NUMBERS = range(4)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Any:
    """Silences NumPy's warnings about overflow, which the inputs cause on purpose."""
    with np.errstate(all="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        yield


@pytest.mark.one_of(2)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_reveal_no_fault(kind: str) -> None:
    """The valid input is read exactly; mutated ones are read correctly or refused."""
    tally = Tally()
    for case, verdict in judged_here((kind, number) for number in NUMBERS):
        tally.add(case, verdict)
    assert tally.faults == [] and tally.counts[kind]["exact"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::FutureWarning")
def test_seeds_reveal_no_fault() -> None:
    """The inputs in seeds.json are judged right."""
    tally = Tally()
    for case, verdict in judged_here(seeds()):
        tally.add(case, verdict)
    assert tally.faults == [] and tally.inputs == len(seeds())


# ------------------------------------------------------------------- that faults are found


def test_refused_valid_input_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If ranks and alphas of modules are ignored, shapes do not fit."""
    monkeypatch.setattr(Config, "by_site", lambda self, patterns, field, site: self.values[field])
    verdict = judge("peft-lora-patterns", 0, tmp_path)
    assert verdict.name == "refused" and verdict.is_readable
    tally = Tally()
    tally.add(("peft-lora-patterns", 0), verdict)
    assert tally.faults and tally.readable["peft-lora-patterns"] == 1


def test_ignored_number_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is one percent off is found."""
    before = Config.by_site

    def by_site(self: Config, patterns: str, field: str, site: str) -> Any:
        number = before(self, patterns, field, site)
        return number * 1.01 if field == "lora_alpha" else number

    monkeypatch.setattr(Config, "by_site", by_site)
    verdict = judge("peft-lora", 0, tmp_path)
    assert verdict.name == "wrong" and "numbers, such as" in verdict.why


def test_reading_an_invalid_file_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle finds no answer, and jaxmix reads the file."""

    def none(case: Any) -> Any:
        raise BadFileError("no right answer")

    monkeypatch.setattr(judging, "answer", none)
    verdict = judge("peft-lora", 0, tmp_path)
    assert (verdict.name, verdict.why) == ("wrong", "read, but no right answer")


def _fails(*_: Any, **__: Any) -> Any:
    raise KeyError("x")


def _hangs(*_: Any, **__: Any) -> Any:
    while True:
        pass


def _removes(path: Path, **_: Any) -> Any:
    (path / "adapter_config.json").unlink()
    raise jaxmix.errors.CheckpointError("a message that is long enough to be one")


def _leaves(path: Path, **_: Any) -> Any:
    (path.parent / "out.partial").mkdir()
    raise jaxmix.errors.CheckpointError("a message that is long enough to be one")


def _says_nothing(*_: Any, **__: Any) -> Any:
    raise jaxmix.JaxmixError("no")


@pytest.mark.parametrize(
    ("load_", "name", "reason"),
    [
        (_fails, "crashed", "KeyError"),
        (_hangs, "hung", "no answer after 0.2 seconds"),
        (_removes, "lost", "changed or gone: adapter/adapter_config.json"),
        (_leaves, "lost", "left behind: out.partial/"),
        (_says_nothing, "crashed", "an error that says nothing: no"),
    ],
)
def test_each_fault_is_found(
    load_: Any, name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way in which loading can go wrong gets its verdict."""
    monkeypatch.setattr(jaxmix, "load", load_)
    monkeypatch.setattr(judging, "SECONDS", 0.2)
    verdict = judge("peft-lora", 0, tmp_path)
    assert verdict.name == name in FAULTS and reason in verdict.why


def test_dead_or_silent_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its input gets a verdict, and another worker continues."""
    from . import running

    workers: list[Any] = []

    class Worker:
        is_alive = False

        def __init__(self) -> None:
            workers.append(self)

        def judged(self, case: Any) -> Verdict:
            return Verdict("crashed", "the process ended with -9")

        def end(self) -> None:
            workers.append(None)

    monkeypatch.setattr(running, "_Worker", Worker)
    tally = run(inputs(3, 0, ["mix"]))
    assert tally.counts["mix"] == {"crashed": 3} and len(workers) == 4 and len(tally.faults) == 3
    assert table(tally).splitlines()[2] == "| mix | 3 | 0 | 0 | 0 | 0 | 3 | 0 | 0 |"


# ----------------------------------------------------------------------------- its own parts


def test_inputs_are_deterministic() -> None:
    """A kind and a number determine the input."""
    first, second = (mutated("peft-lora", 5) for _ in range(2))
    assert first == second and first.changes and not mutated("peft-lora", 0).changes
    assert [*inputs(3, 2, ["a", "b"])] == [("a", 2000000), ("b", 2000000), ("a", 2000001)]


def test_oracles_reader_matches_safetensors(tmp_path: Path) -> None:
    """Both read the same tensors, and each reads the other's files."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5, -2.25, 3e-3, np.inf], ml_dtypes.bfloat16),
        "c": np.array(3, np.int64),
        "d": np.zeros((0, 3), np.float16),
    }
    tensors, metadata = unpack(save(arrays, {"x": "y"}))
    assert metadata == {"x": "y"} and tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape and tensors[name].data == array.tobytes()
        assert np.array_equal(tensors[name].numbers, array.astype(np.float64))
    (tmp_path / "x").write_bytes(pack(tensors))
    with safe_open(tmp_path / "x", framework="numpy") as file:
        assert all(np.array_equal(file.get_tensor(name), array) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
    ],
)
def test_all_8_bit_numbers_are_decoded(dtype: str, kind: Any) -> None:
    """All 256 codes equal ml_dtypes' numbers."""
    numbers = Tensor(dtype, (256,), bytes(range(256))).numbers
    expected = np.arange(256, dtype=np.uint8).view(kind).astype(np.float64)
    assert np.array_equal(numbers, expected, equal_nan=True)


def test_rounding_to_bfloat16() -> None:
    """Numbers are rounded as in ml_dtypes, also ties."""
    numbers = np.concatenate(
        [np.random.default_rng(0).normal(size=500), [1 + 2**-8, 1 + 3 * 2**-8, 3e38, -0.0, 1e-40]]
    ).astype(np.float32)
    assert encoded(numbers, "BF16").data == numbers.astype(ml_dtypes.bfloat16).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack({"a": encoded([1.0])})[:-1],
        pack({"a": encoded([1.0])}) + b"\0",
        pack({"a": encoded([1.0])}).replace(b"[1]", b"[2]"),
        pack({"a": encoded([1.0])}).replace(b"F32", b"F33"),
        pack({"a": encoded([1.0]), "b": encoded([2.0])}).replace(b"[4, 8]", b"[0, 4]"),
    ],
)
def test_damaged_files_have_no_answer(data: bytes) -> None:
    """Files that are cut, too long, or have a mismatched header are refused."""
    with pytest.raises(BadFileError):
        unpack(data)


def test_added_seeds_are_sorted_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are sorted, and each is stored once."""
    from . import seeds as module

    monkeypatch.setattr(module, "_FILE", tmp_path / "seeds.json")
    add_seeds([("b", 3), ("a", 1), ("b", 2), ("b", 3)])
    add_seeds([("a", 0)])
    assert seeds() == [("a", 0), ("a", 1), ("b", 2), ("b", 3)]
