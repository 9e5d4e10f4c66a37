"""Writes the goldens in this folder: a Hugging Face model in a library's own tree, and adapters.

In two steps, since each library needs a separate environment:

    python -m tests.goldens.layouts.make hf DIR        beside torch, transformers 5
    python -m tests.goldens.layouts.make LIBRARY DIR   beside that library, and jaxmix

The first saves tiny random models and their outputs, with and without adapters. The second loads
them with the library's own code, records the names, shapes and numbers of its leaves, composes the
same adapters into its tree, and records the library's outputs.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import jaxmix
from jaxmix.placement.names import leaf_names

from ...converters.layouts.models import CONFIGS, adapters, state, tokens

__all__ = ["main"]

HERE = Path(__file__).parent


def by_torch(root: Path) -> None:
    """Writes checkpoints, and torch's outputs for them, with and without the adapters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for kind, config in CONFIGS.items():
        folder = root / kind
        folder.mkdir(parents=True, exist_ok=True)
        base = state(kind)
        save_file(base, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        loaded_config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
        model = AutoModelForCausalLM.from_config(loaded_config).eval()
        truth = {"tokens": tokens()}
        for name, tensors in (("base", base), ("composed", jaxmix.compose(base, adapters(kind)))):
            state_dict = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
            unmatched = model.load_state_dict(state_dict, strict=False)
            assert not unmatched.unexpected_keys and set(unmatched.missing_keys) <= {
                "lm_head.weight"
            }
            with torch.no_grad():
                truth[name] = model(torch.from_numpy(tokens()).long()).logits.numpy()
        save_file(truth, root / f"{kind}.safetensors")


def by_library(library: str, root: Path) -> None:
    """Records the library's own tree of each model that it loads, and its outputs."""
    import jax

    from . import loading

    for kind, (load, layout) in loading.LIBRARIES[library].items():
        model = kind.partition("-")[0]
        truth = load_file(root / f"{model}.safetensors")
        params, run = load(root / model, kind)
        paths, _ = jax.tree_util.tree_flatten_with_path(params)
        names = leaf_names([path for path, _ in paths])
        leaves = {n: np.asarray(x) for n, (_, x) in zip(names, paths, strict=True)}
        composed = jaxmix.compose(params, adapters(model), layout=layout)
        out = {"torch_base": truth["base"], "torch_composed": truth["composed"]} if run else {}
        for name, tree in (("base", params), ("composed", composed)) if run else ():
            out[name] = np.asarray(run(tree, tokens()), np.float32)
            worst = np.abs(out[name] - truth[name]).max() / np.abs(truth[name]).max()
            print(library, kind, name, f"off by {worst:.1e}")
        record = {
            "library": library,
            "versions": {p: version(p) for p in (*loading.PACKAGES[library], "jax")},
            "source": loading.SOURCES.get(library, "installed"),
            "kind": kind,
            "layout": getattr(layout, "name", layout),
            "leaves": {name: list(leaf.shape) for name, leaf in leaves.items()},
        }
        (HERE / f"{library}-{kind}.json").write_text(json.dumps(record, indent=1) + "\n")
        tensors = {f"leaf.{name}": leaf for name, leaf in leaves.items()}
        path = HERE / f"{library}-{kind}.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in {**tensors, **out}.items()}, path)
        print(path.name, path.stat().st_size, "bytes", len(leaves), "leaves")


def main(step: str, folder: str) -> None:
    """Runs one of the steps."""
    by_torch(Path(folder)) if step == "hf" else by_library(step, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
