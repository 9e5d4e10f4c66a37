"""The cases of peft's own tests/test_mixed.py, each extended by OFT and SHiRA.

PEFT's tests use float32 and 1e-5; these use float64 and 1e-10. If PEFT cannot load an order (SHiRA
over another wrapper), the NumPy fold of the same files is the reference.
"""

import copy
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import save_file

import jaxmix
from jaxmix.converters.adapters.peft import peft_stack
from jaxmix.errors import JaxmixError

from ..goldens.nets import Layer, Net, run
from ..messages import full_text
from .harness import (
    TOLERANCE,
    TorchNet,
    build,
    difference,
    exact,
    forward,
    inputs,
    mixed_model,
    save_adapter,
    state,
)
from .numpy_fold import fold
from .ours import composed, jaxmix_model

NET: Net = (Layer("lin0", "linear", (10, 20)), Layer("lin1", "linear", (20, 2)))
X = inputs(NET, batch=9)
KINDS = ("lora", "loha", "lokr", "adalora", "oft", "shira")
PAIRS = list(itertools.combinations_with_replacement(KINDS, 2))
PLACES = {"first": ("lin0", "lin0"), "last": ("lin1", "lin1"), "apart": ("lin0", "lin1")}
DISTINCT = 1e-4


def config(kind: str, *targets: str, **options: Any) -> peft.PeftConfig:
    """Returns a config of this family."""
    common: dict[str, Any] = {"target_modules": list(targets), **options}
    match kind:
        case "lora":
            return peft.LoraConfig(r=4, lora_alpha=4, **common)
        case "loha":
            return peft.LoHaConfig(r=4, alpha=4, **common)
        case "lokr":
            return peft.LoKrConfig(r=2, alpha=4, **common)
        case "adalora":
            return peft.AdaLoraConfig(init_r=4, lora_alpha=4, total_step=10, **common)
        case "oft":
            return peft.OFTConfig(oft_block_size=5, **common)
        case "shira":
            return peft.ShiraConfig(r=1, **common)
    raise KeyError(kind)


def peft_output(model: TorchNet, folders: Sequence[Path]) -> np.ndarray:
    """Returns PEFT's output, or the fold's if PEFT refuses to load the folders."""
    try:
        return forward(mixed_model(model, folders), X)
    except ValueError as error:
        if "SHiRA does not support nested base layers" not in str(error):
            raise
        return run(NET, fold(state(model), folders), X)


def checked_output(model: TorchNet, folders: Sequence[Path]) -> np.ndarray:
    """Returns the output with jaxmix's weights, after checking it against PEFT."""
    output = forward(jaxmix_model(model, folders), X)
    assert np.isfinite(output).all()
    assert difference(output, peft_output(model, folders)) < TOLERANCE
    return output


def are_distinct(*outputs: np.ndarray) -> bool:
    """Returns whether all outputs are distinct."""
    pairs = itertools.combinations(outputs, 2)
    return all(difference(a, b) > DISTINCT for a, b in pairs)


def are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two outputs are equal up to rounding."""
    return difference(a, b) < TOLERANCE


@dataclass(frozen=True)
class Pair:
    """Two saved adapters, and the outputs of the base, of each alone, and of both orders."""

    model: TorchNet
    kinds: tuple[str, str]
    folders: tuple[Path, Path]
    base: np.ndarray
    alone: tuple[np.ndarray, np.ndarray]
    ordered: np.ndarray
    reversed: np.ndarray


def save_pair(kinds: tuple[str, str], targets: tuple[str, str], root: Path) -> Pair:
    """Saves both adapters with PEFT and runs all combinations with jaxmix."""
    model = build(NET)
    a, b = root / "adapter0", root / "adapter1"
    for seed, (kind, target, folder) in enumerate(zip(kinds, targets, (a, b), strict=True)):
        save_adapter(model, config(kind, target), folder, seed=seed)
    alone = (checked_output(model, [a]), checked_output(model, [b]))
    ordered, reversed_ = checked_output(model, [a, b]), checked_output(model, [b, a])
    return Pair(model, kinds, (a, b), forward(model, X), alone, ordered, reversed_)


@pytest.fixture(
    params=[(k, pair) for pair in PLACES for k in PAIRS], ids=lambda pair: f"{pair[0]}-{pair[1]}"
)
def row(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Pair]:
    """Returns the place of two adapters, and the adapters of two families."""
    kinds, place = request.param
    return place, save_pair(kinds, PLACES[place], tmp_path)


@pytest.mark.one_of(2)
def test_pair_of_families(row: tuple[str, Pair]) -> None:
    """Additive pairs commute and rotations do not; in the last layer, changes add up."""
    place, pair = row
    assert are_distinct(pair.base, *pair.alone, pair.ordered)
    assert are_distinct(pair.base, *pair.alone, pair.reversed)
    rotates = "oft" in pair.kinds
    assert are_equal(pair.ordered, pair.reversed) == (place == "apart" or not rotates)
    summed = pair.base + (pair.alone[0] - pair.base) + (pair.alone[1] - pair.base)
    # An update after a rotation adds to its delta; one before the rotation is rotated too.
    assert are_equal(pair.ordered, summed) == (place == "last" and pair.kinds[1] != "oft")
    _check_reversed_activation(place, pair)
    _check_merge(place, pair)
    _check_strength_zero(pair)


def _check_reversed_activation(place: str, pair: Pair) -> None:
    """Checks that `set_adapter` in reverse order matters only for OFTs in one wrapper."""
    if pair.kinds[0] == "shira" and pair.kinds[1] != "shira" and place != "apart":
        return  # PEFT can't load the second adapter first
    mixed = mixed_model(pair.model, pair.folders[::-1])
    with exact():
        mixed.set_adapter(["adapter1", "adapter0"])
    activated = forward(mixed, X)
    one_wrapper = pair.kinds == ("oft", "oft") and place != "apart"
    assert are_equal(activated, pair.ordered if one_wrapper else pair.reversed)


def _check_merge(place: str, pair: Pair) -> None:
    """Checks that our merged weights equal PEFT's, if PEFT's merge equals its forward."""
    if pair.kinds[1] == "shira" and pair.kinds[0] != "shira" and place != "apart":
        return  # PEFT can't load this order
    if pair.kinds == ("oft", "oft") and place != "apart":
        return  # PEFT's merge is wrong here: see docs/peft_divergence.md
    with exact():
        merged = mixed_model(pair.model, pair.folders).merge_and_unload()
    assert are_equal(pair.ordered, forward(merged, X))


def _check_strength_zero(pair: Pair) -> None:
    """Checks that composing changes no argument, and that strength 0 gives the base."""
    params = state(pair.model)
    before = {name: leaf.copy() for name, leaf in params.items()}
    composed(params, pair.folders)
    assert all(np.array_equal(params[name], before[name]) for name in params)
    with jax.enable_x64(True):
        a, b = (jaxmix.load(folder) for folder in pair.folders)
        with_strength_0 = jaxmix.compose(params, [0.0 * a, 0.0 * b])
        with_no_adapters = jaxmix.compose(params, [])
    assert all(are_equal(np.asarray(with_strength_0[name]), before[name]) for name in params)
    assert all(with_no_adapters[name] is params[name] for name in params)


NESTED = [
    ("lora", ("lin0", "lin1")),
    ("loha", ("lin0",)),
    ("adalora", ("lin1",)),
    ("lokr", ("lin0", "lin1")),
    ("lora", ("lin0", "lin1")),
]
WIDER = [("shira", ("lin0", "lin1")), *NESTED[:3], ("oft", ("lin0", "lin1")), *NESTED[3:],
         ("oft", ("lin0",)), ("oft", ("lin1", "lin0"))]  # fmt: skip


@pytest.mark.parametrize(
    "adapters_and_targets", [NESTED, WIDER], ids=["peft", "with_oft_and_shira"]
)
def test_many_adapters_match(
    adapters_and_targets: list[tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    """Outputs match and are distinct for all adapters, for two of them, and for none."""
    model, folders = build(NET), []
    for i, (kind, targets) in enumerate(adapters_and_targets):
        folders.append(tmp_path / f"adapter{i}")
        save_adapter(model, config(kind, *targets), folders[-1], seed=i)
    all_active = checked_output(model, folders)
    subset = checked_output(model, [folders[1], folders[3]])
    assert are_distinct(forward(model, X), all_active, subset)
    if adapters_and_targets is NESTED:  # all additive: PEFT's merge is right
        mixed = mixed_model(model, folders)
        with exact():
            merged = mixed.merge_and_unload(adapter_names=["adapter1", "adapter3"])
        assert are_equal(subset, forward(merged, X))


@pytest.mark.parametrize(
    "adapters_and_targets", [NESTED, WIDER], ids=["peft", "with_oft_and_shira"]
)
def test_inactive_adapters_have_strength_0(
    adapters_and_targets: list[tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    """PEFT with some loaded adapters active matches jaxmix with the others at strength 0.

    Loading only the active ones differs: an inactive wrapper keeps rotations apart.
    """
    model, folders = build(NET), []
    for i, (kind, targets) in enumerate(adapters_and_targets):
        folders.append(tmp_path / f"adapter{i}")
        save_adapter(model, config(kind, *targets), folders[-1], seed=i)
    mixed, composed_model = mixed_model(model, folders), copy.deepcopy(model)
    with jax.enable_x64(True):
        adapters = [jaxmix.load(folder, name=f"a{i}") for i, folder in enumerate(folders)]
    for active in itertools.combinations(range(len(folders)), 3):
        with exact():
            mixed.set_adapter([f"adapter{i}" for i in active])
        with jax.enable_x64(True):
            stack = peft_stack([float(i in active) * a for i, a in enumerate(adapters)])
            weights = jaxmix.compose(state(model), [stack])
        composed_model.load_state_dict(
            {k: torch.from_numpy(np.array(w)) for k, w in weights.items()}
        )
        assert are_equal(forward(composed_model, X), forward(mixed, X)), active


@pytest.mark.parametrize("kinds", [("lora", "loha"), ("lora", "oft"), ("oft", "lokr")], ids=str)
def test_deleted_adapter_is_added_outermost(kinds: tuple[str, str], tmp_path: Path) -> None:
    """A deleted adapter has no effect; added again, it becomes the outermost."""
    pair = save_pair(kinds, ("lin0", "lin0"), tmp_path)
    mixed = mixed_model(pair.model, pair.folders)
    with exact():
        mixed.delete_adapter("adapter0")
    assert are_equal(pair.alone[1], forward(mixed, X))
    with exact():
        mixed.add_adapter("adapter0", peft.PeftConfig.from_pretrained(str(pair.folders[0])))
        tensors = peft.utils.load_peft_weights(str(pair.folders[0]), device="cpu")
        peft.set_peft_model_state_dict(mixed, tensors, adapter_name="adapter0")
        mixed.set_adapter(["adapter0", "adapter1"])
    assert are_equal(pair.reversed, forward(mixed, X))
    with exact():
        mixed.delete_adapter("adapter0")
        mixed.delete_adapter("adapter1")
    assert are_equal(pair.base, forward(mixed, X))


@pytest.mark.parametrize("kinds", [("lora", "loha"), ("oft", "lora"), ("shira", "lora")], ids=str)
def test_later_saved_module_wins(kinds: tuple[str, str], tmp_path: Path) -> None:
    """PEFT cannot activate two adapters that saved one module; in jaxmix the later one wins."""
    model, folders = build(NET), []
    for i, kind in enumerate(kinds):
        folders.append(tmp_path / f"{i}")
        save_adapter(model, config(kind, "lin0", modules_to_save=["lin1"]), folders[-1], seed=i)
    with pytest.raises(ValueError, match="Only one adapter can be set at a time"):
        mixed_model(model, folders)
    weights, last = composed(state(model), folders), composed(state(model), folders[1:])
    assert np.array_equal(weights["lin1.weight"], last["lin1.weight"])
    assert are_equal(
        forward(jaxmix_model(model, folders), X), run(NET, fold(state(model), folders), X)
    )
    for folder in folders:
        checked_output(model, [folder])


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    """Like PEFT, jaxmix refuses two adapters of one name."""
    model = build(NET)
    save_adapter(model, config("oft", "lin0"), tmp_path / "a", seed=0)
    a, b = (jaxmix.load(tmp_path / "a", name="twin") for _ in range(2))
    with pytest.raises(
        JaxmixError,
        match=full_text(
            "two adapters of a mix have the name 'twin'. Give each its "
            "own: jaxmix.load(…, name='other') or "
            "adapter.renamed('other')."
        ),
    ):
        jaxmix.mix(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_parameters_matches(kind: str, tmp_path: Path) -> None:
    """A loaded adapter has as many numbers as PEFT's `get_nb_trainable_parameters` counts."""
    model = build(NET)
    adapted = save_adapter(model, config(kind, "lin0", "lin1"), tmp_path / "a", seed=0)
    with exact():
        count = adapted.get_nb_trainable_parameters()[0]
    with jax.enable_x64(True):
        updates = jaxmix.load(tmp_path / "a").updates.values()
        leaves = [leaf for leaf in jax.tree.leaves(list(updates)) if np.ndim(leaf) > 0]
    size = sum(leaf.size for leaf in leaves if np.issubdtype(leaf.dtype, np.floating))
    assert size == count


def test_prefix_tuning_is_refused(tmp_path: Path) -> None:
    """Neither PEFT nor jaxmix mixes prefix tuning with other types."""
    model = build(NET)
    with exact():
        mixed = peft.get_peft_model(model, config("oft", "lin0"), "a", mixed=True)
    prefix = peft.PrefixTuningConfig(num_virtual_tokens=2, token_dim=4, num_layers=1)
    with pytest.raises(ValueError, match="is not compatible with the `PeftMixedModel`"):
        mixed.add_adapter("b", prefix)
    prefix.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    prompt = {"prompt_embeddings": np.zeros((2, 8), np.float32)}
    save_file(prompt, tmp_path / "adapter_model.safetensors")
    with pytest.raises(
        JaxmixError,
        match=full_text(
            f"{tmp_path}/adapter_config.json: peft_type 'PREFIX_TUNING' is "
            "refused: it adds tokens or key-value pairs to the input and "
            "changes no weight, so it can't be part of a mix of weights. "
            "Keep it in PEFT."
        ),
    ):
        jaxmix.load(tmp_path)


DECODER = [("shira", 1), ("lora", 2), ("oft", 3), ("loha", 4), ("adalora", 5), ("lokr", 6)]


@pytest.mark.one_of(3)
@pytest.mark.parametrize("kinds_and_seeds", [DECODER[1:], DECODER, DECODER[:1:-1]], ids=len)
def test_generated_tokens_match(kinds_and_seeds: list[tuple[str, int]], tmp_path: Path) -> None:
    """A small OPT generates the tokens of PEFT's mixed model after each added adapter."""
    torch.manual_seed(0)
    with exact():
        model = transformers.OPTForCausalLM(
            transformers.OPTConfig(
                vocab_size=40,
                hidden_size=20,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=40,
                word_embed_proj_dim=20,
                init_std=0.5,
            )
        ).eval()
    tokens, mask = torch.tensor([[5, 6, 7], [5, 8, 5]]), torch.tensor([[1, 1, 1], [0, 1, 1]])

    def generate(decoder: Any) -> np.ndarray:
        with exact():
            out = decoder.generate(
                input_ids=tokens, attention_mask=mask, max_new_tokens=8, do_sample=False
            )
        return out.numpy()

    base, folders, generated = generate(model), [], []
    for kind, seed in kinds_and_seeds:
        folders.append(tmp_path / kind)
        save_adapter(model, config(kind, "q_proj", "v_proj", "fc1"), folders[-1], seed=seed)
        composed_model, mixed = jaxmix_model(model, folders), mixed_model(model, folders)
        assert are_equal(forward(composed_model, tokens.numpy()), forward(mixed, tokens.numpy()))
        generated.append(generate(composed_model))
        assert np.array_equal(generated[-1], generate(mixed))
    assert any(not np.array_equal(base, out) for out in generated)
    assert np.array_equal(base, generate(model))


def test_peft_stack_of_one_changes_nothing(tmp_path: Path) -> None:
    """A single rotation needs no reversal."""
    model = build(NET)
    save_adapter(model, config("oft", "lin0", "lin1"), tmp_path / "a", seed=0)
    with jax.enable_x64(True):
        adapter = jaxmix.load(tmp_path / "a")
        without_stack = jaxmix.compose(state(model), [adapter])
        stacked = jaxmix.compose(state(model), [peft_stack([adapter])])
    assert all(np.array_equal(without_stack[name], stacked[name]) for name in without_stack)
