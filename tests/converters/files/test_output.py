"""`force` replaces files of the kinds that are written, and no other file of a user."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxmix
from jaxmix.converters.adapters.mixfile.recipe import save_recipe
from jaxmix.converters.files import output
from jaxmix.converters.merging import merge_checkpoint
from jaxmix.errors import CheckpointError

from ...messages import full_text
from ..bases import Adapters, contents, save_base

Write = Callable[[Path], object]
OTHERS = [
    "thesis.tex",
    ".git/HEAD",
    "notes/day.txt",
    "run.py",
    "model.gguf",
    "data/model.safetensors",
]


def _merge(base: Path, adapters: Adapters) -> Write:
    return lambda out: merge_checkpoint(base, jaxmix.load(adapters["lora"]), out, force=True)


def _save(base: Path, adapters: Adapters) -> Write:
    return lambda out: jaxmix.save(jaxmix.load(adapters["lora"]), out, force=True)


def _export(base: Path, adapters: Adapters) -> Write:
    return lambda out: jaxmix.export_peft(jaxmix.load(adapters["lora"]), out, force=True)


def _export_mix(base: Path, adapters: Adapters) -> Write:
    parts = [jaxmix.load(adapters[name]) for name in ("lora", "oft")]
    return lambda out: jaxmix.export_peft(jaxmix.mix(*parts), out, force=True)


WRITERS: dict[str, Callable[[Path, Adapters], Write]] = {
    "merge": _merge,
    "save": _save,
    "export": _export,
    "export a mix": _export_mix,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_force_keeps_other_files(
    writer: Callable[[Path, Adapters], Write], base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """An output is replaced; a folder with other files is refused and left unchanged."""
    write, out = writer(base, adapters), tmp_path / "out"
    write(out)
    first = contents(out)
    write(out)
    assert contents(out) == first
    for name in OTHERS:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("a user's")
        before = contents(tmp_path)
        message = (
            f"the output {out} can't be replaced, since it also holds other files:\n  {{}}\n"
            "Move these files, or choose another folder."
        )
        with pytest.raises(CheckpointError, match=full_text(message.format(name))):
            write(out)
        assert contents(tmp_path) == before
        (out / name).unlink()
        if (out / name).parent != out:
            alone = message.format(f"{name.split('/')[0]}/")
            with pytest.raises(CheckpointError, match=full_text(alone)):
                write(out)
            (out / name).parent.rmdir()
    write(out)
    assert contents(out) == first and not list(tmp_path.glob("*out?*"))


def test_all_other_files_are_listed(base: Path, adapters: Adapters, tmp_path: Path) -> None:
    """A project in a folder that also has a config.json; links count by their names."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("config.json", "thesis.tex", "figure.png"):
        (project / name).write_text("{}")
    (project / "home").symlink_to(tmp_path)
    before = contents(project)
    with pytest.raises(CheckpointError) as caught:
        _merge(base, adapters)(project)
    text = str(caught.value)
    assert all(f"\n  {name}" in text for name in ("figure.png", "home", "thesis.tex"))
    assert "config.json" not in text and contents(project) == before


def test_checkpoint_with_side_files_is_replaced(adapters: Adapters, tmp_path: Path) -> None:
    """The output has the base's own files, in folders too; litter is ignored."""
    base = save_base(tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    (base / "modeling_own.py").write_text("x = 1\n")
    _merge(base, adapters)(tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").write_text("")
    _merge(base, adapters)(tmp_path / "out")
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
    assert not (tmp_path / "out" / ".DS_Store").exists()


def test_file_that_appears_during_the_merge_is_kept(
    base: Path, adapters: Adapters, tmp_path: Path
) -> None:
    """Other files are searched again right before the old output is replaced."""
    out = tmp_path / "out"
    _merge(base, adapters)(out)

    def progress(*_: Any) -> None:
        (out / "thesis.tex").write_text("a user's")

    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out can't be replaced, since it also holds "
            "other files:\n"
            "  thesis.tex\n"
            "Move these files, or choose another folder."
        ),
    ):
        merge_checkpoint(base, jaxmix.load(adapters["oft"]), out, force=True, progress=progress)
    assert (out / "thesis.tex").read_text() == "a user's"


def test_unlistable_folder_is_refused(
    base: Path, adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It applies to an output that is to be replaced, and to a base."""
    out, plain = tmp_path / "out", os.scandir
    _merge(base, adapters)(out)
    for folder in (base, out):
        (folder / "closed").mkdir()

    def scandir(path: Any) -> Any:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"{tmp_path}/base can't be listed completely: [Errno 13] Permission "
                f"denied: '{tmp_path}/base/closed'. The unreadable folder may hold "
                "files of the checkpoint. Make it readable, or move it "
                "elsewhere."
            ),
        ):
            _merge(base, adapters)(tmp_path / "new")
        (base / "closed").rmdir()
        with pytest.raises(
            CheckpointError,
            match=full_text(
                f"the output {tmp_path}/out can't be replaced, since its files "
                "can't be listed: [Errno 13] Permission denied: "
                f"'{tmp_path}/out/closed'. Choose another folder."
            ),
        ):
            _merge(base, adapters)(out)
    assert not (tmp_path / "new").exists()


def test_foreign_mix_json_is_kept(adapters: Adapters, base: Path, tmp_path: Path) -> None:
    """A user's own mix.json, and a JSON file that is no recipe, are kept."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mix.json").write_text('{"songs": []}')
    with pytest.raises(
        CheckpointError,
        match=full_text(
            f"the output {tmp_path}/out is not replaced, since jaxmix did not "
            "write its mix.json. Choose another folder, or move it."
        ),
    ):
        _save(base, adapters)(out)
    package = tmp_path / "package.json"
    package.write_text(json.dumps({"name": "mine"}))
    message = (
        f"{package} is not replaced, since it is not a recipe. Choose another name, or move it."
    )
    with pytest.raises(CheckpointError, match=full_text(message)):
        save_recipe([("owner/name", 1.0)], package, force=True)
    assert json.loads(package.read_text()) == {"name": "mine"}
    place = save_recipe([("owner/name", 1.0)], tmp_path / "recipe.json")
    save_recipe([("owner/other", 1.0)], place, force=True)
    assert "owner/other" in place.read_text()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("model.safetensors", True),
        ("model.safetensors.index.json", True),
        ("model.fp16-00001-of-00002.safetensors", True),
        ("generation_config.json", True),
        ("tokenizer.model", True),
        ("my_lora.safetensors", False),
        ("thesis.json", False),
        ("sub/config.json", False),
    ],
)
def test_checkpoint_files_are_recognized_by_name(name: str, is_one: bool) -> None:
    """Their contents are not read."""
    assert output.is_checkpoint_file(name) is is_one
