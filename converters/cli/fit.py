"""``jaxmix fit``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import typer

from jaxmix.converters.adapters.mixfile import MIX_FILE, is_saved, save
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
from jaxmix.converters.cli.telling import AsJson, Force, Out, one_of, say, steps_bar, tell_json
from jaxmix.converters.cli.tokens import tokens_of, windows_of
from jaxmix.converters.files.hub import base_folder
from jaxmix.converters.files.output import checked_output
from jaxmix.converters.files.terminal import escape
from jaxmix.errors import UnsupportedError
from jaxmix.mixing import Mix, compose
from jaxmix.pictures import checked_picture

__all__ = ["fit"]

Per = Literal["mix", "adapter", "site"]
_DTYPES = ("float32", "bfloat16", "float16")


def fit(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="A Hugging Face folder or hub id: Llama, Mistral, Qwen, Gemma or GPT-2.",
        ),
    ],
    adapters: AdapterOptions,
    text: Annotated[
        Path,
        typer.Option(
            "--text", "-t", metavar="FILE", help="Plain text that the mix is to be good at."
        ),
    ],
    out: Out,
    per: Annotated[
        str,
        typer.Option(
            "--per",
            metavar="WHAT",
            help="What has a strength of its own: mix (all one factor), adapter, or site (each "
            "adapter at each of its sites).",
            **one_of(get_args(Per)),
        ),
    ] = "adapter",
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many batches.")] = 50,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Windows of text in a batch.")] = 4,
    length: Annotated[int, typer.Option("--length", min=2, help="Tokens in a window.")] = 256,
    rate: Annotated[
        float, typer.Option("--rate", help="The first step's size; it falls to 0 along a cosine.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="For the order of the windows.")] = 0,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER|bytes",
            help="A tokenizer's folder, or `bytes`; by default what lies in BASE.",
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help=f"In what the model is run: {', '.join(_DTYPES)}.",
            **one_of(_DTYPES),
        ),
    ] = _DTYPES[0],
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the strengths: .png, .svg or .pdf."),
    ] = None,
    ignore: Ignored = None,
    filename: Filenames = None,
    subfolder: Subfolder = None,
    revision: Revision = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Learn the strengths of a mix on a text, and save the mix with them.

    Adapters and model stay as they are: only the strengths move, from those on the command line, so
    that the model finds the text as likely as it can. Every tenth window of the text is kept apart,
    and the loss on these is told, before and after, in nats per token. OUT is a saved mix, which
    every other command takes for an adapter.

    **Examples**

    - `jaxmix demo --copy try`
    - `jaxmix fit try/base -a try/lora -a try/loha --text try/text/bible.txt -o learned`
    - `jaxmix fit base -a lora -a loha:0 --text my.txt --per site --plot strengths.png -o learned`
    - `jaxmix merge try/base -a learned -o merged`
    """
    if plot is not None:
        checked_picture(plot)
    base = base_folder(base)
    mixed = load_mix(
        adapters, base, ignore=ignore, filename=filename, subfolder=subfolder, revision=revision
    )
    check_apart(out, adapters)
    checked_output(out, [base], force=force, marks=(MIX_FILE,), replaces=is_saved)
    model = _model(base, dtype)
    tokens = tokens_of(text, base, tokenizer, model.config.vocab_size)
    seen, held = windows_of(tokens, length, text)
    with steps_bar("learning strengths", as_json=as_json) as progress:
        batches = _Batches(seen, min(batch, len(seen)), steps, seed, progress)
        found = _fitted(mixed, model, batches, cast(Per, per), rate)
    before, after = (_loss_on(one, model, held, batches.size) for one in (mixed, found.mix))
    place = save(found.mix, out, force=force)
    if plot is not None:
        from jaxmix.training import draw_strengths

        draw_strengths(found.mix, plot)
    if as_json:
        drawn = {} if plot is None else {"picture": plot}
        losses = {"before": before, "after": after, "steps": found.losses}
        tell_json({"out": place, "adapters": strengths_data(found.mix), "losses": losses, **drawn})
        return
    say(f"[bold]{escape(str(place))}[/]: {escape(_strengths(found.mix, per))}")
    say(f"loss on text not learned from: {before:.4f} → {after:.4f} nats per token")
    if plot is not None:
        say(f"The strengths as a picture: {escape(str(plot))}")


def _strengths(mixed: Mix, per: str) -> str:
    """What was found, for people: of sites the range of each adapter's."""
    if per != "site":
        return strengths_text(mixed)
    from jaxmix.training import strengths_by_site

    each = {name: list(sites.values()) for name, sites in strengths_by_site(mixed).items()}
    return ", then ".join(
        f"{name} × {min(own):.3g} to {max(own):.3g} at {len(own)} sites"
        for name, own in each.items()
    )


def _model(base: Path, dtype: str) -> Any:
    """A model that writes text."""
    from jaxmix import models  # not at the top: it brings Flax

    model = models.load(base, dtype=jnp.dtype(dtype))
    if not isinstance(model, models.Decoder | models.GPT2):
        raise UnsupportedError(
            f"{base} holds a {type(model).__name__}, expected a decoder or a GPT-2, which say how "
            "likely a text is."
        )
    return model


@dataclass(frozen=True)
class _Batches(Sequence[Any]):
    """Windows in random order, each once before any comes again.

    Args:
        windows: all of them (windows, length).
        size: how many are in a batch.
        steps: how many batches there are.
        seed: for the order.
        progress: called with the batches given out, and those in all.
    """

    windows: np.ndarray
    size: int
    steps: int
    seed: int
    progress: Callable[[int, int], None]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, i: Any) -> Any:
        rounds, at = divmod(i, len(self.windows) // self.size)
        order = np.random.default_rng((self.seed, rounds)).permutation(len(self.windows))
        return self.windows[order[at * self.size : (at + 1) * self.size]]

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.steps):
            yield self[i]
            self.progress(i + 1, self.steps)


def _loss(model: Any, tokens: Any) -> Any:
    """The mean of ``-ln p(token | tokens before it)``, in nats, in float32 at the least."""
    logits = model(tokens)[:, :-1].astype(jnp.float32)
    chances = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(chances)


def _fitted(mixed: Mix, model: Any, batches: _Batches, per: Per, rate: float) -> Any:
    """The strengths found."""
    import optax

    from jaxmix.training import fit

    optimizer = optax.adam(optax.cosine_decay_schedule(rate, batches.steps))
    return fit(mixed, model, _loss, batches, per=per, optimizer=optimizer, progress=False)


def _loss_on(mixed: Mix, model: Any, windows: np.ndarray, size: int) -> float:
    """The mean loss of a mix on windows, a batch at a time."""
    from flax import nnx

    graph, state = nnx.split(compose(model, mixed))
    parts = np.split(windows, range(size, len(windows), size))
    total = sum(float(_loss_of(graph, state, part)) * len(part) for part in parts)
    return total / len(windows)


@partial(jax.jit, static_argnames="graph")
def _loss_of(graph: Any, state: Any, tokens: Any) -> Any:
    """The loss of a model that was taken apart, compiled once for all mixes."""
    from flax import nnx

    return _loss(nnx.merge(graph, state), tokens)
