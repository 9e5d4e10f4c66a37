"""Writes old_oft.zip: OFT adapters saved by older versions of PEFT, with their outputs.

Each version is installed into its own folder (``pip install --no-deps --target DIR peft==0.13.2``)
next to the current torch and transformers. Run the script once per version: ``python
tests/goldens/make_old_oft.py DIR``. Each run appends to the zip. For 0.17, first delete the name
HybridCache, which transformers no longer has, from an import in ``peft_model.py``.
"""

import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

ZIP = Path(__file__).with_name("old_oft.zip")


def main(site: str) -> None:
    """Writes every case of one version."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, site)
    import peft
    import torch
    from safetensors.torch import save_file

    torch.set_default_dtype(torch.float64)
    version = tuple(map(int, peft.__version__.split(".")[:2]))
    with tempfile.TemporaryDirectory() as root, zipfile.ZipFile(ZIP, "a") as out:
        for name, (net, options) in cases(version).items():
            folder = Path(root) / name
            torch.manual_seed(len(name))
            model = network(torch, net)
            base = {k: v.clone() for k, v in model.state_dict().items()}
            config = peft.OFTConfig(target_modules=["one", "two"], **options)
            adapted = peft.get_peft_model(model, config)
            with torch.no_grad():
                for key, param in adapted.named_parameters():
                    if param.requires_grad:
                        values = torch.randn(param.shape).float().double()
                        param.copy_(1 + 0.3 * values if "oft_s" in key else 0.4 * values)
            x = torch.randn(3, 12) if net == "linear" else torch.randn(2, 4, 5, 5)
            adapted.eval().save_pretrained(str(folder))
            if (
                net == "conv2d"
            ):  # its forward sums overlapping patches, but the merged weight is right
                adapted = adapted.merge_and_unload()
            with torch.no_grad():
                truth = {**base, "x": x, "output": adapted(x)}
            save_file({k: v.contiguous() for k, v in truth.items()}, folder / "truth.safetensors")
            for file in sorted(folder.iterdir()):
                if file.name != "README.md":
                    out.write(file, f"{peft.__version__}/{name}/{file.name}")


def cases(version: tuple[int, ...]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the networks and options that a version supports."""
    share, coft = {"block_share": True}, {"coft": True, "eps": 0.02}
    if version < (0, 14):
        rows = {"three": {"r": 3}, "two": {"r": 2}, "share": {"r": 3, **share}}
        rows |= {"coft": {"r": 2, **coft}, "coft_share": {"r": 2, **share, **coft}}
    elif version < (0, 16):
        size = {"r": 0, "oft_block_size": 4}
        rows = {"size": size, "count": {"r": 2, "oft_block_size": 0}, "share": {**size, **share}}
        rows |= {"coft": {**size, **coft}, "coft_share": {**size, **share, **coft}}
    else:
        size = {"r": 0, "oft_block_size": 4}
        rows = {"exact": {**size, "use_cayley_neumann": False}}
        for n in (1, 2, 3, 4, 5):
            neumann = {"use_cayley_neumann": True, "num_cayley_neumann_terms": n}
            rows[f"terms{n}"] = {**size, **neumann}
    all_cases = {f"linear-{name}": ("linear", options) for name, options in rows.items()}
    if version < (0, 16):
        name = next(iter(rows))
        all_cases[f"conv2d-{name}"] = ("conv2d", rows[name])
    return all_cases


def network(torch: Any, kind: str) -> Any:
    """Returns two non-square layers with biases."""
    model = torch.nn.Module()
    if kind == "linear":
        model.one, model.two = torch.nn.Linear(12, 20), torch.nn.Linear(20, 6)
    else:
        model.one, model.two = torch.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(6, 8, 3)
    model.forward = lambda x: model.two(torch.tanh(model.one(x)))
    return model


if __name__ == "__main__":
    main(sys.argv[1])
