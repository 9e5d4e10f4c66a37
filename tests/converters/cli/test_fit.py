"""``jaxmix fit`` learns strengths on a text."""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmix
from jaxmix import models, training
from jaxmix.converters.cli.tokens import split_windows
from jaxmix.families import LoRA
from jaxmix.training import by_site
from jaxmix.training.fitting import Fit

from ...models import tiny
from .running import Captured, main, run, run_json

VOCABULARY = 256
TEXT = b"In the beginning was the word. " * 20
SITES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a model over bytes, a text and two adapters."""
    folder = tmp_path_factory.mktemp("fit")
    config = tiny.config(vocab_size=VOCABULARY)
    tiny.write(folder / "base", tiny.tensors(config), vocab_size=VOCABULARY)
    (folder / "text.txt").write_bytes(TEXT)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        updates = {
            site: LoRA(
                np.asarray(rng.normal(size=(2, 12)) / 4, np.float32),
                np.asarray(rng.normal(size=(18, 2)) / 4, np.float32),
                1.0,
            )
            for site in SITES
        }
        jaxmix.save(jaxmix.Adapter(updates, name=name), folder / name)
    return folder


def fit_arguments(place: Path, *more: object) -> tuple[object, ...]:
    """Returns the arguments of a fit of these adapters."""
    adapters = ("-a", place / "one", "-a", f"{place / 'two'}:0.5")
    sizes = ("--steps", 4, "--batch", 3, "--length", 16)
    return ("fit", place / "base", *adapters, "--text", place / "text.txt", *sizes, *more)


def test_fit_writes_a_mix_and_prints_losses(place: Path, tmp_path: Path) -> None:
    """The output is a mix with learned strengths; the loss on held-out text is printed."""
    done = run(*fit_arguments(place, "-o", tmp_path / "out"))
    assert done.returncode == 0 and "learning strengths" in done.stderr and "4/4" in done.stderr
    mixed = jaxmix.load(tmp_path / "out")
    strengths = {part.name: part.strength for part in mixed.parts}
    summary, losses = done.stdout.splitlines()
    names = ", then ".join(f"{name} × {strength:g}" for name, strength in strengths.items())
    assert summary == f"{tmp_path}/out: {names}" and list(strengths) == ["one", "two"]
    assert strengths["one"] != 1 and strengths["two"] != 0.5
    before, after = (float(part) for part in losses.split() if part[0].isdigit())
    assert losses.startswith("loss on held-out text: ") and after < before


def test_per_site_learns_and_draws_each_strength(
    place: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Each adapter gets a strength per site, drawn in a picture; losses are on held-out windows."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "s.svg"
    out = tmp_path / "out"
    document = run_json(
        capsys, *fit_arguments(place, "--per", "site", "--plot", picture, "-o", out)
    )
    names = [f"{name}@{site}" for name in ("one", "two") for site in SITES]
    mixed = jaxmix.load(out)
    assert [part.name for part in mixed.parts] == names and picture.exists()
    assert document["adapters"] == [
        {"name": part.name, "strength": part.strength} for part in mixed.parts
    ]
    assert (document["out"], document["picture"]) == (str(out), str(picture))
    losses = document["losses"]
    assert len(losses["steps"]) == 4 and losses["after"] < losses["before"]
    model = jaxmix.models.load(place / "base", dtype=jnp.float32)
    _, held = split_windows(np.frombuffer(TEXT, np.uint8).astype(np.int32), 16, Path())
    logits = np.asarray(jaxmix.compose(model, mixed)(jnp.asarray(held)), float)[:, :-1]
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    picked = np.take_along_axis(chances, held[:, 1:, None].astype(int), -1)
    np.testing.assert_allclose(losses["after"], -picked.mean(), rtol=1e-4)


def test_options_reach_fit(
    place: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, seed, rate and `--per` reach `fit`; per-site strengths are summarised as ranges."""
    calls: list[Any] = []

    def pretend(mixed: Any, model: Any, loss: Any, batches: Any, **how: Any) -> Fit:
        calls.append((mixed, model, list(batches), how))
        return Fit(by_site(mixed), (1.0,))

    monkeypatch.setattr(training, "fit", pretend)
    module = sys.modules["jaxmix.converters.cli.fit"]
    monkeypatch.setattr(module, "_loss_on", lambda *_: 1.0)
    out = tmp_path / "out"
    more = ("--per", "site", "--rate", 0.25, "--steps", 14, "--dtype", "bfloat16", "-o", out)
    assert main(*fit_arguments(place, *more)) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{out}: one × 1 to 1 at 2 sites, then two × 0.5 to 0.5 at 2 sites"
    )
    assert main(*fit_arguments(place, "--seed", 1, "--force", "-o", out)) == 0
    (mixed, model, batches, how), (_, _, others, other_how) = calls
    assert [(part.name, part.strength) for part in mixed.parts] == [("one", 1.0), ("two", 0.5)]
    assert model.lm_head.kernel.dtype == jnp.bfloat16
    assert (how["per"], other_how["per"], how["progress"]) == ("site", "adapter", False)
    slope, numbers = jnp.ones(1), jnp.ones(1)
    with jax.numpy_dtype_promotion("standard"):  # as in `fit`
        change, _ = how["optimizer"].update(slope, how["optimizer"].init(numbers), numbers)
    np.testing.assert_allclose(change, -0.25, rtol=1e-4)
    seen, _ = split_windows(np.frombuffer(TEXT, np.uint8).astype(np.int32), 16, Path())
    assert {batch.shape for batch in batches} == {(3, 16)} and len(batches) == 14
    rows = [tuple(row) for batch in batches[: len(seen) // 3] for row in batch]
    assert set(rows) <= {tuple(row) for row in seen} and len(rows) == len(seen) // 3 * 3
    assert not np.array_equal(batches[0], others[0]) and len(others) == 4


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (("--length", 4000), 1, "expected at least two windows of 4000"),
        (("--per", "layer"), 2, "'layer' is not one of mix, adapter, site."),
        (("--dtype", "int8"), 2, "'int8' is not one of float32, bfloat16, float16."),
        (("--plot", "x.gif"), 1, "the picture x.gif has an unsupported format"),
    ],
)
def test_invalid_options_are_refused(
    more: tuple[object, ...], code: int, text: str, place: Path, tmp_path: Path, capsys: Captured
) -> None:
    """Invalid options are refused before any training."""
    document = run_json(capsys, *fit_arguments(place, *more, "-o", tmp_path / "out"), code=code)
    assert text in document["error"] and not list(tmp_path.iterdir())


def test_missing_text_is_refused_before_the_model_is_loaded(
    place: Path, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a large model takes minutes."""
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    arguments = fit_arguments(place, "--text", "nothing", "-o", tmp_path / "out")
    document = run_json(capsys, *arguments, code=1)
    assert document["error"] == (
        "the text nothing can't be read: No such file or directory. Expected a plain text file."
    )


def test_output_inside_an_input_is_refused(place: Path, capsys: Captured) -> None:
    """An output inside the base or an adapter is refused at once."""
    document = run_json(capsys, *fit_arguments(place, "-o", place / "one"), code=1)
    assert "overlap: one contains the other" in document["error"]
    document = run_json(capsys, *fit_arguments(place, "-o", place / "base" / "x"), code=1)
    assert "is in the input" in document["error"]


def test_model_without_likelihoods_is_refused(
    tmp_path: Path, place: Path, capsys: Captured
) -> None:
    """A BERT gives no likelihood of a text, so it is refused."""
    config = tiny.config("bert", vocab_size=VOCABULARY)
    folder = tmp_path / "bert"
    folder.mkdir()
    fields = {**tiny.BERT, "vocab_size": VOCABULARY}
    tiny.write(folder, tiny.tensors(config))
    (folder / "config.json").write_text(json.dumps(fields))
    line = ("fit", folder, "-a", place / "one", "--text", place / "text.txt", "-o", tmp_path / "o")
    document = run_json(capsys, *line, code=1)
    assert document["error"] == (
        f"{folder} holds a Bert, expected a decoder or a GPT-2, which predict the next token. Use "
        "such a base."
    )
