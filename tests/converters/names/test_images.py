"""Name maps of image models, on small trees: the original names and those of diffusers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.converters.names.images import image_map, image_maps, other_names
from jaxmix.errors import CheckpointError, JaxmixError, LayoutError
from jaxmix.placement.templates import Template, Templates
from tests.image_names import FOLDER, tables, text_of

from ...messages import full_text

MODELS = sorted(tables())
INPUTS = 5
Arrays = dict[str, np.ndarray]


def templates(model: str) -> Templates:
    """A model's table."""
    table = next(names for names in image_maps() if names.name == model).templates
    assert table is not None
    return table


def rows_of(model: str, limit: int = 10) -> list[Template]:
    """Some rows of a model, no two of one module: all that are cut or swapped, and plain ones."""
    rows: list[Template] = []
    used: set[str] = set()
    for row in templates(model).rows:
        if not used.intersection(row.targets) and not row.is_tensor:
            rows.append(row)
            used.update(row.targets)
    special = [row for row in rows if len(row.targets) > 1 or row.has_swapped_halves]
    plain = [row for row in rows if row not in special]
    return special[:limit] + plain[:: max(1, len(plain) // limit)]


def sizes(row: Template) -> tuple[int, ...]:
    """The rows of each target; q, k and v of different sizes where the table states none."""
    if row.has_swapped_halves or len(row.targets) == 1:
        return (4,) * len(row.targets)
    if row.ratio and not any(row.ratio):
        return (INPUTS, 2, 2)
    return tuple(2 * part for part in row.ratio) or (4,) * len(row.targets)


def named(template: str) -> str:
    """A name with a number in place of ``{}``."""
    return template.replace("{}", "1")


def in_memory(row: Template, weight: np.ndarray) -> Arrays:
    """The leaves in diffusers' names of a weight in the original ones."""
    if row.has_swapped_halves:
        weight = np.concatenate(np.split(weight, 2)[::-1])
    parts = np.split(weight, np.cumsum(sizes(row))[:-1])
    return {f"{named(t)}.weight": part for t, part in zip(row.targets, parts, strict=True)}


def trees(rows: list[Template], seed: int = 0) -> tuple[Arrays, Arrays]:
    """One model's weights in the original names, and in those of diffusers."""
    draw = np.random.default_rng(seed)
    original: Arrays = {}
    memory: Arrays = {}
    for row in rows:
        weight = draw.normal(size=(sum(sizes(row)), INPUTS)).astype(np.float32)
        original[f"{named(row.source)}.weight"] = weight
        memory |= in_memory(row, weight)
    return original, memory


def lora(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    """The factors of a LoRA of rank 2 with alpha 1, and its difference."""
    a, b = draw.normal(size=(2, shape[1])), draw.normal(size=(shape[0], 2))
    a, b = a.astype(np.float32), b.astype(np.float32)
    factors = {"lora_down.weight": a, "lora_up.weight": b, "alpha": np.float32(1)}
    return {name: np.asarray(x) for name, x in factors.items()}, b @ a / 2


def loha(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    """The factors of a LoHa of rank 2, and its difference."""
    names = {"hada_w1_a": (shape[0], 2), "hada_w1_b": (2, shape[1])}
    names |= {"hada_w2_a": (shape[0], 2), "hada_w2_b": (2, shape[1])}
    f = {name: draw.normal(size=s).astype(np.float32) for name, s in names.items()}
    return f, (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])


def lokr(shape: tuple[int, ...], draw: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    """Two whole factors of a LoKr with an alpha that has no meaning, and their product."""
    x = draw.normal(size=(2, 1)).astype(np.float32)
    y = draw.normal(size=(shape[0] // 2, shape[1])).astype(np.float32)
    return {"lokr_w1": x, "lokr_w2": y, "alpha": np.asarray(1e10, np.float32)}, np.kron(x, y)


def file_of(
    path: Path,
    tree: Mapping[str, np.ndarray],
    key: Callable[[str], str],
    kind: Callable[..., tuple[Arrays, np.ndarray]],
) -> tuple[Path, Arrays]:
    """An adapter on all modules of a tree, and its differences by leaf."""
    draw, tensors, deltas = np.random.default_rng(1), Arrays(), Arrays()
    for leaf, weight in tree.items():
        factors, deltas[leaf] = kind(weight.shape, draw)
        name = key(leaf.removesuffix(".weight"))
        tensors |= {f"{name}.{end}": x for end, x in factors.items()}
    save_file(tensors, path)
    return path, deltas


def merged(path: Path, tree: Mapping[str, np.ndarray]) -> Arrays:
    """The tree with the adapter."""
    composed = jaxmix.compose(dict(tree), [jaxmix.load(path, base=tree)])
    return {name: np.asarray(x) for name, x in composed.items()}


def assert_equal(tensors: Arrays, base: Arrays, deltas: Arrays) -> None:
    """Compares with the formula."""
    assert deltas.keys() <= base.keys() == tensors.keys()
    for name, weight in base.items():
        np.testing.assert_allclose(tensors[name], weight + deltas.get(name, 0), atol=2e-6)


def kohya(name: str) -> str:
    """The spelling of a name in kohya's files."""
    return f"lora_unet_{name.replace('.', '_')}"


# ----------------------------------------------------------------------------------- the tables


def test_files_are_generated_by_the_script() -> None:
    """The committed data files are what the script writes."""
    assert {file.stem for file in FOLDER.glob("*.json")} == set(MODELS)
    for name, table in tables().items():
        assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == text_of(table)


@pytest.mark.parametrize("model", MODELS)
def test_rows_are_found_from_both_sides(model: str) -> None:
    """Each row is found by its source and by its targets, and no two have one source."""
    table = templates(model)
    sources = [row.source for row in table.rows]
    assert len(set(sources)) == len(sources)
    for row in table.rows:
        source, targets = named(row.source), tuple(map(named, row.targets))
        tensor = source if row.is_tensor else f"{source}.weight"
        names = dict.fromkeys(piece.name for piece in table.pieces(tensor))
        ends = "" if row.is_tensor else ".weight"
        assert tuple(names) == tuple(f"{target}{ends}" for target in targets)
        assert table.sources(targets)[source] == targets


def test_maps_are_found_by_class() -> None:
    """A model's map is found by diffusers' class, or by the name of its file."""
    names = image_map({"_class_name": "ChromaTransformer2DModel"})
    assert names is not None and names.name == "flux" and names == image_map({"model_type": "flux"})
    assert image_map({"model_type": "bert"}) is None


def test_names_keep_their_components() -> None:
    """With two transformers in one tree, each keeps its modules."""
    table = templates("wan")
    for component in ("transformer", "transformer_2"):
        (piece,) = table.pieces(f"{component}.blocks.0.self_attn.q.weight")
        assert piece.name == f"{component}.blocks.0.attn1.to_q.weight"
    names = next(other_names(["transformer_2.blocks.0.attn1.to_q"]))
    assert names == {"blocks.0.self_attn.q": ("blocks.0.attn1.to_q",)}


# -------------------------------------------------------------------------- adapters on bases


@pytest.mark.parametrize("model", MODELS)
def test_original_names_on_diffusers_names(model: str, tmp_path: Path) -> None:
    """kohya's, ComfyUI's and LyCORIS's files match trees in diffusers' names."""
    rows = rows_of(model)
    original, memory = trees(rows)
    by_leaf = {f"{named(row.source)}.weight": row for row in rows}
    component = "unet" if model == "unet" else "transformer"
    # LoHa on one model: how rows are cut depends on the table, not on the model's adapter.
    other = loha if model == "flux" else lora
    for i, (key, kind, prefix) in enumerate(
        ((kohya, lora, ""), (lambda name: f"diffusion_model.{name}", other, f"{component}."))
    ):
        path, deltas = file_of(tmp_path / f"{i}.safetensors", original, key, kind)
        expected: Arrays = {}
        for leaf, delta in deltas.items():
            expected |= {prefix + name: x for name, x in in_memory(by_leaf[leaf], delta).items()}
        base = {prefix + name: x for name, x in memory.items()}
        assert_equal(merged(path, base), base, expected)


@pytest.mark.parametrize("model", MODELS)
def test_diffusers_names_on_original_names(model: str, tmp_path: Path) -> None:
    """An adapter in diffusers' names changes the rows of a tree in original names."""
    rows = rows_of(model)
    original, memory = trees(rows)
    path, deltas = file_of(
        tmp_path / "x.safetensors", memory, lambda name: f"transformer.{name}", lora
    )
    expected: Arrays = {}
    for row in rows:
        parts = [deltas[f"{named(target)}.weight"] for target in row.targets]
        fused = np.concatenate(parts)
        if row.has_swapped_halves:
            fused = np.concatenate(np.split(fused, 2)[::-1])
        expected[f"{named(row.source)}.weight"] = fused
    assert_equal(merged(path, original), original, expected)


FLUX = rows_of("flux", 20)


def test_unequal_parts_need_their_sizes(tmp_path: Path) -> None:
    """A qkv that is not a square q with k and v of one size can't be split."""
    rows = [row for row in rows_of("z_image") if len(row.targets) > 1]
    _, memory = trees(rows)
    path, _ = file_of(tmp_path / "x.safetensors", memory, lambda n: f"transformer.{n}", lora)
    base = {f"{named(row.source)}.weight": np.ones((10, 7), np.float32) for row in rows}
    with pytest.raises(LayoutError) as caught:
        jaxmix.compose(base, [jaxmix.load(path)], names="z_image")
    assert (
        "layers.1.attention.to_q: layers.1.attention.qkv.weight (10, 7) can't be split into 3 "
        "parts without their sizes"
    ) in str(caught.value)


def test_lokr_of_a_fused_weight(tmp_path: Path) -> None:
    """A whole-rank LoKr of q, k and v becomes rows of its product, for any alpha."""
    rows = [row for row in FLUX if row.source.endswith("img_attn.qkv")]
    original, memory = trees(rows)
    path, deltas = file_of(tmp_path / "x.safetensors", original, kohya, lokr)
    (delta,) = deltas.values()
    assert_equal(merged(path, memory), memory, in_memory(rows[0], delta))


def test_text_encoder_next_to_original_names(tmp_path: Path) -> None:
    """One file for a transformer in the original names and a text encoder matches a pipeline."""
    original, memory = trees(FLUX)
    base = {f"transformer.{name}": x for name, x in memory.items()}
    base["text_encoder.text_model.fc1.weight"] = np.ones((3, INPUTS), np.float32)
    te = {"text_model.fc1.weight": base["text_encoder.text_model.fc1.weight"]}
    path, deltas = file_of(tmp_path / "a.safetensors", original, kohya, lora)
    other, extra = file_of(
        tmp_path / "b.safetensors", te, lambda n: f"lora_te1_{n.replace('.', '_')}", lora
    )
    save_file({**load_file(path), **load_file(other)}, path)
    expected = {f"text_encoder.{name}": x for name, x in extra.items()}
    for row in FLUX:
        parts = in_memory(row, deltas[f"{named(row.source)}.weight"])
        expected |= {f"transformer.{name}": x for name, x in parts.items()}
    assert_equal(merged(path, base), base, expected)


def xlabs(name: str) -> str | None:
    """XLabs' name of a module of Flux."""
    for end, new in (("attn.qkv", "qkv_lora"), ("attn.proj", "proj_lora")):
        if name.endswith(end):
            block, stream = name.removesuffix(f".{end}").removesuffix(f"_{end}").split("img"), "1"
            if len(block) == 1:
                block, stream = name.removesuffix(f"_{end}").split("txt"), "2"
            return f"{block[0]}processor.{new}{stream}"
    return None


def test_names_of_xlabs(tmp_path: Path) -> None:
    """XLabs' processors match both schemes; of linear1, only the rows of q, k and v."""
    rows = [row for row in FLUX if xlabs(row.source) or row.source.startswith("single")]
    original, memory = trees(rows)
    draw, tensors = np.random.default_rng(2), Arrays()
    on_original, on_memory = Arrays(), Arrays()
    for row in rows:
        source, count = named(row.source), sum(sizes(row))
        name = xlabs(source)
        if source.endswith("linear1"):
            name, count = "single_blocks.1.processor.qkv_lora", sum(sizes(row)[:3])
        elif source.endswith("linear2"):
            name = "single_blocks.1.processor.proj_lora"
        if name is None:
            continue
        factors, delta = lora((count, INPUTS), draw)
        tensors[f"{name}.down.weight"] = factors["lora_down.weight"]
        tensors[f"{name}.up.weight"] = factors["lora_up.weight"] / 2
        fused = np.zeros((sum(sizes(row)), INPUTS), np.float32)
        fused[:count] = delta
        on_original[f"{source}.weight"] = fused
        on_memory |= in_memory(row, fused)
    save_file(tensors, tmp_path / "x.safetensors")
    assert len(tensors) == 12
    assert_equal(merged(tmp_path / "x.safetensors", memory), memory, on_memory)
    assert_equal(merged(tmp_path / "x.safetensors", original), original, on_original)


@pytest.mark.parametrize(
    "key",
    [
        lambda name: f"{kohya(name)}_",
        lambda name: f"lora_unet_{name}",
        lambda name: f"lora_unet.{name.replace('.', '_')}",
        lambda name: f"diffusion_model.{name.replace('.', '_')}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"transformer.base_model.model.{name}",
        lambda name: f"base_model.model.diffusion_model.{name}",
    ],
    ids=["underscore", "dots", "dot", "underscores", "peft", "part_peft", "peft_part"],
)
@pytest.mark.parametrize("is_original", [True, False])
def test_spellings_of_trainers(
    key: Callable[[str], str], is_original: bool, tmp_path: Path
) -> None:
    """Dots, underscores and PEFT's prefix may be mixed, in either scheme."""
    original, memory = trees(FLUX[:3])
    path, deltas = file_of(
        tmp_path / "x.safetensors", original if is_original else memory, key, lora
    )
    expected = deltas
    if is_original:
        expected = {}
        for row in FLUX[:3]:
            expected |= in_memory(row, deltas[f"{named(row.source)}.weight"])
    assert_equal(merged(path, memory), memory, expected)


def test_alpha_of_a_single_file_of_peft_is_the_rank(tmp_path: Path) -> None:
    """An image model's file in PEFT's names without a config has alpha equal to the rank."""
    a, b = np.ones((2, INPUTS), np.float32), np.ones((4, 2), np.float32)
    name = "base_model.model.transformer_blocks.1.attn.to_q"
    tensors = {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
    save_file(tensors, tmp_path / "x.safetensors")
    base = {"transformer_blocks.1.attn.to_q.weight": np.zeros((4, INPUTS), np.float32)}
    output = merged(tmp_path / "x.safetensors", base)
    assert_equal(output, base, {next(iter(base)): b @ a})


def test_duplicates_are_dropped(tmp_path: Path) -> None:
    """A module that a file has under two names, with equal numbers, is read once."""
    _, memory = trees(FLUX[:3])
    path, deltas = file_of(tmp_path / "x.safetensors", memory, kohya, lora)
    tensors = load_file(path)
    dotted = {f"transformer.{name.removesuffix('.weight')}": kohya(name[:-7]) for name in memory}
    copies = {
        f"{new}.{end}": tensors[f"{old}.{end}"]
        for new, old in dotted.items()
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    save_file({**tensors, **copies}, path)
    assert_equal(merged(path, memory), memory, deltas)
    # The original name of the same modules, where q, k and v have one `lora_down`.
    row = next(row for row in FLUX[:3] if len(row.targets) == 3)
    names = [kohya(named(target)) for target in row.targets]
    down = tensors[f"{names[0]}.lora_down.weight"]
    fused = kohya(named(row.source))
    tensors |= {f"{name}.lora_down.weight": down for name in names}
    tensors[f"{fused}.lora_down.weight"] = down
    tensors[f"{fused}.lora_up.weight"] = np.concatenate(
        [tensors[f"{name}.lora_up.weight"] for name in names]
    )
    tensors[f"{fused}.alpha"] = tensors[f"{names[0]}.alpha"]
    save_file(tensors, path)
    merged(path, memory)
    tensors[f"{fused}.alpha"] = np.asarray(3, np.float32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        merged(path, memory)
    assert f"{fused}: is {named(row.source)}, and so is {' and '.join(names)}" in str(caught.value)


def test_embeddings_are_skipped_with_a_warning(tmp_path: Path) -> None:
    """Bundled embeddings of tokens are skipped with a warning."""
    _, memory = trees(FLUX[:1])
    path, deltas = file_of(tmp_path / "x.safetensors", memory, kohya, lora)
    save_file({**load_file(path), "bundle_emb.cat.clip_l": np.ones((1, 2), np.float32)}, path)
    with pytest.warns(UserWarning) as caught:
        output = merged(path, memory)
    assert str(caught[0].message) == (
        f"{path}: bundled embeddings of new tokens are left out:\n  bundle_emb.cat.clip_l\n"
        "The adapter works without them; prompts with these tokens need them in the tokenizer "
        "and the text encoder."
    )
    assert_equal(output, memory, deltas)


def test_norms_of_control_loras(tmp_path: Path) -> None:
    """The norms' weights in a control LoRA replace those of the base, in either scheme."""
    _, memory = trees(FLUX[:1])
    norm = "transformer_blocks.1.attn.norm_q.weight"
    base = {**memory, norm: np.ones(4, np.float32)}
    path, deltas = file_of(tmp_path / "x.safetensors", memory, lambda n: f"transformer.{n}", lora)
    weight = np.arange(4, dtype=np.float32)
    tensors = load_file(path)
    for key in (f"transformer.{norm}", "double_blocks.1.img_attn.norm.query_norm.scale"):
        save_file({**tensors, key: weight}, path)
        assert_equal(merged(path, base), base, {**deltas, norm: weight - 1})
    save_file({**tensors, f"transformer.{norm}": weight[None]}, path)
    with pytest.raises(
        JaxmixError,
        match=full_text(
            f"{tmp_path}/x.safetensors: tensors that are not a valid update:\n"
            "  transformer_blocks.1.attn.norm_q: saved_weight (1, 4), "
            "expected a vector\n"
            "Was the file edited or truncated?"
        ),
    ):
        merged(path, base)


@pytest.mark.parametrize("prefix", ["diffusion_model.blocks.1", "lora_unet_blocks_1"])
def test_differences_of_modulation(prefix: str, tmp_path: Path) -> None:
    """`diff_m` is the difference of the tensor `modulation` of Wan."""
    leaf = "blocks.1.scale_shift_table"
    base = {leaf: np.ones((1, 6, 4), np.float32), "blocks.1.attn1.to_q.weight": np.eye(4)}
    base = {name: x.astype(np.float32) for name, x in base.items()}
    delta = np.random.default_rng(3).normal(size=(1, 6, 4)).astype(np.float32)
    save_file({f"{prefix}.diff_m": delta}, tmp_path / "x.safetensors")
    assert_equal(merged(tmp_path / "x.safetensors", base), base, {leaf: delta})


def test_float8_factors(tmp_path: Path) -> None:
    """Factors that were cast to float8 are read as float32."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    base = {"transformer_blocks.1.attn.to_q.weight": np.zeros((4, INPUTS), np.float32)}
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        draw = torch.Generator().manual_seed(0)
        a, b = (torch.randn(s, generator=draw).to(dtype) for s in ((2, INPUTS), (4, 2)))
        name = "transformer.transformer_blocks.1.attn.to_q.lora"
        tensors = {f"{name}_A.weight": a, f"{name}_B.weight": b}
        save_torch(tensors, tmp_path / "x.safetensors")
        expected = (b.float() @ a.float()).numpy()
        assert_equal(merged(tmp_path / "x.safetensors", base), base, {next(iter(base)): expected})
