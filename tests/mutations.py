"""Changes one place of the library after another, and reports which changes the tests detect.

    python -m tests.mutations               with the tests of `make test`
    python -m tests.mutations --all         with those of `make test-all`
    python -m tests.mutations --near        with the tests that are likely to catch it; quicker
    python -m tests.mutations bank tied     the mutations whose name contains one of these words

Each mutation replaces a text that occurs once in the library, in a copy of the tree. The likely
tests run first and stop at the first failure; the others run only if none of them fails. A
mutation that no test catches is a gap: write the test. A text that no longer occurs is an error:
adapt the mutation to the code.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOTS = ("jaxmix", "converters")
QUICK = ("-m", "not thorough")


@dataclass(frozen=True)
class Mutation:
    """One change that breaks the library.

    Args:
        name: The package, and the effect of the change.
        old: A text that occurs once in the library.
        new: The text that replaces it.
        near: The tests that are likely to catch it: files or folders below tests/, and words for
            pytest.
    """

    name: str
    old: str
    new: str
    near: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "operators: Khatri-Rao of factors in two orders",
        "b = self.left.b[:, :, None] * self.right.b[:, None, :]",
        "b = self.left.b[:, None, :] * self.right.b[:, :, None]",
        ("operators/test_lowrank.py", "operators/test_alone.py"),
    ),
    Mutation(
        "operators: two permutations in the wrong order",
        "Permutation(y.order[x.order])",
        "Permutation(x.order[y.order])",
        ("operators/test_fold.py",),
    ),
    Mutation(
        "operators: a diagonal scales columns of blocks",
        "BlockDiagonal(x.d.reshape(-1, y.block_size, 1) * y.all_blocks(), 1)",
        "BlockDiagonal(x.d.reshape(-1, 1, y.block_size) * y.all_blocks(), 1)",
        ("operators/test_fold.py",),
    ),
    Mutation(
        "operators: a rotation across devices is taken for one within a part",
        "(m.blocks.shape[0] if m.copies == 1 else m.copies) % parts == 0",
        "(m.blocks.shape[0] * m.copies) % parts >= 0",
        ("devices/test_rotations.py",),
    ),
    Mutation(
        "affine: R is not transposed around Δ",
        "multiply(multiply(by.left, term), by.right.T)",
        "multiply(multiply(by.left, term), by.right)",
        ("test_affine.py", "laws/test_every_family.py"),
    ),
    Mutation(
        "affine: a low rank is not carried through what comes later",
        "carried = add(_carried(new, carried), low)",
        "carried = add(carried, low)",
        ("test_affine.py", "laws/test_every_family.py"),
    ),
    Mutation(
        "families: DoRA's bias off the line at other strengths",
        "Diagonal(1 - strength + strength * c[:, 0])",
        "Diagonal(c[:, 0])",
        ("families/test_contract.py", "-k", "dora"),
    ),
    Mutation(
        "families: OFT's bound not shared among blocks",
        "self.eps / q.shape[0] ** 0.5)",
        "self.eps)",
        ("families/test_contract.py", "-k", "coft"),
    ),
    Mutation(
        "families: a wavelet's patch starts one place off",
        "start = 2 * (at - count // 2 * is_detail)",
        "start = 1 + 2 * (at - count // 2 * is_detail)",
        ("families/test_contract.py", "-k", "waveft"),
    ),
    Mutation(
        "placement: a rule's quotient and remainder exchanged",
        'a // b if operator == "//" else a % b',
        'a % b if operator == "//" else a // b',
        ("converters/layouts/test_rules.py", "placement/test_layout.py"),
    ),
    Mutation(
        "placement: no refusal of two sites in one leaf",
        "both := list(overlaps(tree, sites))",
        "both := list(overlaps(tree, sites))[:0]",
        ("placement/test_leaves.py",),
    ),
    Mutation(
        "placement: T5's shared embedding taken for untied",
        '_last(site) == "embed_tokens" and _last(embedding) == "shared"',
        "False",
        ("placement/test_tied.py", "placement/test_names.py"),
    ),
    Mutation(
        "placement: the axes that a bias decides are ignored",
        "len(bias) != 1 or shape.count(bias[0]) != 1",
        "len(bias) != 1 or shape.count(bias[0]) < 1",
        ("placement/test_orientation.py",),
    ),
    Mutation(
        "apply: what reads the base does not see a replaced leaf",
        "if update.is_base_side and start is not bare:",
        "if update.is_base_side and start is bare:",
        ("laws/test_identity_and_order.py",),
    ),
    Mutation(
        "apply: rounding to 16 bits after each pass",
        "dtype if i + 1 == len(passes) else arithmetic(tensor.dtype)",
        "dtype",
        ("laws/test_shape.py",),
    ),
    Mutation(
        "unmerged: the weight's stack is made dense before a scan",
        "return by_layer(x) if is_stack else as_array(x, report, eqn)",
        "return x.dense() if is_stack else as_array(x, report, eqn)",
        ("unmerged/test_uses.py",),
    ),
    Mutation(
        "unmerged: L is not transposed after a product",
        "y = y @ left.T",
        "y = y @ left",
        ("unmerged/test_attaching.py", "unmerged/test_uses.py"),
    ),
    Mutation(
        "bank: rows beyond a slot's share are dropped",
        "is_done = is_taken | (by_slot == slots)",
        "is_done = is_full[:, None] | (by_slot == slots)",
        ("bank/test_bank.py",),
    ),
    Mutation(
        "bank: a row of no adapter gets the first one",
        "jnp.where(pick.slot >= 0, output, result)",
        "output",
        ("bank/test_bank.py",),
    ),
    Mutation(
        "combining: TIES divides by all, not by those that agree",
        "/ jnp.maximum(jnp.sum(mask, 0), 1)",
        "/ len(stack)",
        ("combining/test_formulas.py",),
    ),
    Mutation(
        "combining: DARE does not rescale",
        "jnp.where(kept, stack / density, 0)",
        "jnp.where(kept, stack, 0)",
        ("combining/test_formulas.py", "combining/test_combining.py"),
    ),
    Mutation(
        "training: a shared array is trained once for each site",
        "same = id(leaf) if isinstance(leaf, jax.Array | np.ndarray) else path",
        "same = path",
        ("training/test_partition.py",),
    ),
    Mutation(
        "training: DoRA's magnitude of the wrong axis",
        'jnp.linalg.norm(weight, axis=0 if target.layer == "embedding" else 1)',
        "jnp.linalg.norm(weight, axis=1)",
        ("training/test_init_kinds.py", "-k", "dora"),
    ),
    Mutation(
        "peft reader: experts in B slow instead of fast",
        "b.reshape(len(b), rank, experts).transpose(2, 0, 1)",
        "b.reshape(len(b), experts, rank).transpose(1, 0, 2)",
        ("converters/adapters/peft", "-k", "expert"),
    ),
    Mutation(
        "peft exporter: the rest of a scale is not in B",
        "ratio = current / scale",
        "ratio = 1.0",
        ("converters/adapters/common/test_equal_ranks.py",),
    ),
    Mutation(
        "lycoris: dora_scale by output taken for one by input",
        'NORM_EPS, axis="out" if by_output else "in"',
        'NORM_EPS, axis="in" if by_output else "out"',
        (
            "converters/adapters/formats/test_goldens.py",
            "converters/adapters/test_kohya.py",
        ),
    ),
    Mutation(
        "mixfile: a recipe's strength is ignored",
        'part if is_stored else _times(part, float(record.get("strength", 1.0)))',
        "part",
        ("converters/adapters/mixfile/test_reading.py",),
    ),
    Mutation(
        "merging: the second piece of a large tensor overwrites the first",
        "min(begin + STRIDE, tensor.size), at + begin)",
        "min(begin + STRIDE, tensor.size), at)",
        ("converters/merging/test_merge.py",),
    ),
    Mutation(
        "merging: verifying allows any distance",
        "off / (unit / 2 + slack)",
        "0 * off",
        ("converters/merging/test_verifying.py",),
    ),
    Mutation(
        "quantization: GPTQ's zero points of three bits one too low",
        "zeros = (zeros + 1) & 7",
        "zeros = zeros & 7",
        ("converters/checkpoints/quantization/test_goldens.py",),
    ),
    Mutation(
        "quantization: fp8's block scales start at the first row",
        "np.arange(part.start, part.stop) // self.block[0]",
        "np.arange(part.stop - part.start) // self.block[0]",
        ("converters/merging/test_quantized.py",),
    ),
    Mutation(
        "cli: --new-head without a class is ignored",
        "new_head=head_class or new_head,",
        "new_head=head_class or False,",
        ("converters/merging/test_new_head.py",),
    ),
)


def copied(tree: Path, to: Path) -> Path:
    """Copies a checkout, with its links."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info")
    shutil.copytree(tree, to, symlinks=True, ignore=ignored)
    return to


def file_of(tree: Path, old: str) -> Path:
    """Returns the only file of the library that contains a string, exactly once."""
    files = [path for root in ROOTS for path in sorted((tree / root).rglob("*.py"))]
    paths = [path for path in files for _ in range(path.read_text(encoding="utf-8").count(old))]
    if len(paths) != 1:
        raise SystemExit(f"{old!r} occurs {len(paths)} times in the library. Adapt the mutation.")
    return paths[0]


def failure(tree: Path, args: tuple[str, ...]) -> str | None:
    """Returns the first test that fails; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *args]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if process.returncode == 0:
        return None
    lines = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", process.stdout, re.MULTILINE)
    # 1 is a failure, 2 an error while tests are collected; other codes are no result.
    if process.returncode not in (1, 2) or not lines:
        raise SystemExit(f"{' '.join(command)}:\n{process.stdout[-2000:]}{process.stderr[-2000:]}")
    return lines[0]


def caught(
    tree: Path, mutation: Mutation, selection: tuple[str, ...], near_only: bool
) -> str | None:
    """Returns the test that catches a mutation in this copy of the tree; None if no test does."""
    path = file_of(tree, mutation.old)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        tests = tree / "tests"
        near_tests = [
            f"tests/{name}" if (tests / name).exists() else name for name in mutation.near
        ]
        failed = failure(tree, (*selection, *near_tests))
        return failed if failed or near_only else failure(tree, selection)
    finally:
        path.write_text(text, encoding="utf-8")


def table(
    tree: Path, patterns: list[str], selection: tuple[str, ...], near_only: bool
) -> Iterator[tuple[str, str | None]]:
    """Yields each mutation's name with the test that catches it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(tree, Path(folder) / "jaxmix")
        selected = [
            m for m in MUTATIONS if not patterns or any(pattern in m.name for pattern in patterns)
        ]
        for mutation in selected:
            file_of(copy, mutation.old)
        for mutation in selected:
            yield mutation.name, caught(copy, mutation, selection, near_only)


def main() -> None:
    """Prints the table line by line."""
    parser = argparse.ArgumentParser(
        description="Breaks the library and reports which breaks the tests catch."
    )
    parser.add_argument("words", nargs="*", help="the mutations whose name holds one of these")
    parser.add_argument("--all", action="store_true", help="the tests of `make test-all`")
    parser.add_argument("--near", action="store_true", help="the likely tests alone")
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout")
    options = parser.parse_args()
    uncaught = 0
    print("| broken | caught by |\n| --- | --- |", flush=True)
    selection = () if options.all else QUICK
    for name, test in table(options.tree.resolve(), options.words, selection, options.near):
        uncaught += test is None
        print(f"| {name} | {test or '**nothing**'} |", flush=True)
    sys.exit(uncaught > 0)


if __name__ == "__main__":
    main()
