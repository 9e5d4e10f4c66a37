"""``jaxmix fit``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from jaxmix.converters.cli.adapters import (
    AdapterOptions,
    Filenames,
    Ignored,
    Revision,
    Subfolder,
    check_apart,
    load_mix,
    strengths_data,
    strengths_text,
)
from jaxmix.converters.cli.console import (
    AsJson,
    Force,
    Out,
    choice_of,
    print_json,
    print_lines,
    steps_bar,
)
from jaxmix.converters.files.output import checked_output
from jaxmix.converters.files.terminal import escape
from jaxmix.errors import UnsupportedError
from jaxmix.pictures import checked_picture

if TYPE_CHECKING:  # help and shell completion do without JAX
    import numpy as np

    from jaxmix.mixing import Mix

__all__ = ["fit"]

Per = Literal["mix", "adapter", "site"]
_DTYPES = ("float32", "bfloat16", "float16")


def fit(
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE",
            help="A Hugging Face folder or hub id: Llama, Mistral, Qwen, Gemma or GPT-2.",
        ),
    ],
    adapters: AdapterOptions,
    text: Annotated[
        Path,
        typer.Option(
            "--text",
            "-t",
            metavar="FILE",
            help="The plain text on which the strengths are learned.",
        ),
    ],
    out: Out,
    per: Annotated[
        str,
        typer.Option(
            "--per",
            metavar="WHAT",
            help="The number of strengths: one for the mix, one per adapter, or one per site of "
            "each adapter.",
            **choice_of(get_args(Per)),
        ),
    ] = "adapter",
    steps: Annotated[int, typer.Option("--steps", min=1, help="The number of batches.")] = 50,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows of text in a batch.")] = 4,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens in a window.")] = 256,
    rate: Annotated[
        float,
        typer.Option("--rate", help="The first learning rate, which decays to 0 along a cosine."),
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="The seed for the order of the windows.")] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER|bytes",
            help="A tokenizer's folder, or `bytes`; by default the tokenizer of BASE.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help=f"The dtype in which the model runs: {', '.join(_DTYPES)}.",
            **choice_of(_DTYPES),
        ),
    ] = _DTYPES[0],
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Plot the strengths to a .png, .svg or .pdf file."
        ),
    ] = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Learn the strengths of a mix on a text, and save the mix with them.

    Adapters and model are unchanged. Only the strengths are trained, starting from those on the
    command line, to minimize the model's loss on the text. Every tenth window of the text is held
    out, and the loss on these windows is reported before and after, in nats per token. OUT is a
    saved mix, which all other commands accept as an adapter.

    **Examples**

    - `jaxmix demo --copy try`
    - `jaxmix fit try/base -a try/lora -a try/loha --text try/text/bible.txt -o learned`
    - `jaxmix fit base -a lora -a loha:0 --text my.txt --per site --plot strengths.png -o learned`
    - `jaxmix merge try/base -a learned -o merged`
    """
    from jaxmix.converters.adapters.mixfile import MIX_FILE, is_saved, save
    from jaxmix.converters.cli.tokens import read_text, split_windows, tokenized
    from jaxmix.converters.files.hub import base_folder

    if plot is not None:
        checked_picture(plot)
    folder = base_folder(base)
    mixed = load_mix(
        adapters, folder, ignore=ignore, filename=filename, subfolder=subfolder, revision=revision
    )
    check_apart(out, adapters)
    checked_output(out, [folder], force=force, marks=(MIX_FILE,), replaces=is_saved)
    data = read_text(text)
    model = _model(folder, dtype)
    tokens = tokenized(data, text, folder, tokenizer, model.config.vocab_size)
    train, held_out = split_windows(tokens, length, text)
    with steps_bar("learning strengths", "batches", as_json=as_json) as progress:
        batches = _Batches(train, min(batch, len(train)), steps, seed, progress)
        fitted = _fit_strengths(mixed, model, batches, cast(Per, per), rate)
    before, after = (_loss_on(m, model, held_out, batches.size) for m in (mixed, fitted.mix))
    target = save(fitted.mix, out, force=force)
    if plot is not None:
        from jaxmix.training import draw_strengths

        draw_strengths(fitted.mix, plot)
    if as_json:
        picture = {} if plot is None else {"picture": plot}
        losses = {"before": before, "after": after, "steps": fitted.losses}
        print_json(
            {"out": target, "adapters": strengths_data(fitted.mix), "losses": losses, **picture}
        )
        return
    print_lines(f"[bold]{escape(str(target))}[/]: {escape(_strengths(fitted.mix, per))}")
    print_lines(f"loss on held-out text: {before:.4f} → {after:.4f} nats per token")
    if plot is not None:
        print_lines(f"plot of the strengths: {escape(str(plot))}")


def _strengths(mixed: "Mix", per: str) -> str:
    """Describes the strengths; with one per site, the range over each adapter's sites."""
    if per != "site":
        return strengths_text(mixed)
    from jaxmix.training import strengths_by_site

    by_adapter = {name: list(sites.values()) for name, sites in strengths_by_site(mixed).items()}
    return ", then ".join(
        f"{name} × {min(values):.3g} to {max(values):.3g} at {len(values)} sites"
        for name, values in by_adapter.items()
    )


def _model(base: Path, dtype: str) -> Any:
    """Loads a language model."""
    import jax.numpy as jnp

    from jaxmix import models

    model = models.load(base, dtype=jnp.dtype(dtype))
    if not isinstance(model, models.Decoder | models.GPT2):
        raise UnsupportedError(
            f"{base} holds a {type(model).__name__}, expected a decoder or a GPT-2, which predict "
            "the next token. Use such a base."
        )
    return model


@dataclass(frozen=True)
class _Batches(Sequence[Any]):
    """Batches of windows in random order, each window once per epoch.

    Args:
        windows: All windows (windows, length).
        size: The number of windows in a batch.
        steps: The number of batches.
        seed: The seed for the order.
        progress: Called with the number of batches yielded, and the total number.
    """

    windows: "np.ndarray"
    size: int
    steps: int
    seed: int
    progress: Callable[[int, int], None]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: Any) -> Any:
        import numpy as np

        epoch, at = divmod(i, len(self.windows) // self.size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.windows))
        return self.windows[order[at * self.size : (at + 1) * self.size]]

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.steps):
            yield self[i]
            self.progress(i + 1, self.steps)


def _loss(model: Any, tokens: Any) -> Any:
    """Returns the mean of ``-ln p(token | previous tokens)`` in nats."""
    import jax
    import jax.numpy as jnp

    logits = model(tokens)[:, :-1].astype(jnp.float32)
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(log_probs)


def _fit_strengths(mixed: "Mix", model: Any, batches: _Batches, per: Per, rate: float) -> Any:
    """Trains the strengths."""
    import optax

    from jaxmix.training import fit

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, batches.steps))
    return fit(mixed, model, _loss, batches, per=per, optimizer=optimizer, progress=False)


def _loss_on(mixed: "Mix", model: Any, windows: "np.ndarray", size: int) -> float:
    """Returns the mean loss of a mix on windows, computed in batches."""
    import jax
    import numpy as np
    from flax import nnx

    from jaxmix.mixing import compose

    graph, state = nnx.split(compose(model, mixed))
    loss = jax.jit(_split_loss, static_argnames="graph")  # compiled once for all mixes
    parts = np.split(windows, range(size, len(windows), size))
    total = sum(float(loss(graph, state, part)) * len(part) for part in parts)
    return total / len(windows)


def _split_loss(graph: Any, state: Any, tokens: Any) -> Any:
    """Returns the loss of a model given as graph and state."""
    from flax import nnx

    return _loss(nnx.merge(graph, state), tokens)
