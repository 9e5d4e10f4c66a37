"""Judges many inputs, in one process or several, which are watched from outside.

A worker reports the input that it begins and its verdict. If it reports nothing for too long, or
dies, that input still gets a verdict, and another worker continues after it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Queue

from .judging import FAULTS, SECONDS, VERDICTS, Verdict, judge
from .kinds import KINDS

__all__ = ["Tally", "inputs", "judged_here", "run", "table"]

# How long a worker may be silent: the alarm within it comes first, if Python can still hear it.
_SILENCE = 6 * SECONDS
# Shapes that come up once fill XLA's cache of programs.
_CLEAR_EVERY = 20_000
# The limit of a worker's address space: no reader may allocate what a file merely claims.
_MEMORY = 16 << 30

Input = tuple[str, int]


@dataclass
class Tally:
    """Counts of verdicts.

    Args:
        counts: The number of each verdict, by kind.
        faults: The inputs with a fault, their verdicts and reasons.
        readable: The number of refused inputs that the oracle reads, by kind.
        seconds: The duration.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[tuple[Input, Verdict]] = field(default_factory=list)
    readable: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, case: Input, verdict: Verdict) -> None:
        """Counts one input."""
        kind, number = case
        self.counts.setdefault(kind, Counter())[verdict.name] += 1
        self.readable[kind] += verdict.name == "refused" and verdict.is_readable
        if verdict.name in FAULTS or (number == 0 and verdict.name != "exact"):
            self.faults.append((case, verdict))

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return sum(sum(counts.values()) for counts in self.counts.values())


def inputs(count: int, seed: int, kinds: Sequence[str] = KINDS) -> Iterator[Input]:
    """Yields inputs, alternating between the kinds.

    Args:
        count: The number of inputs.
        seed: The first input; runs of ``count`` inputs at most a million seeds apart share none.
        kinds: The kinds.

    Yields:
        A kind and a number.
    """
    for i in range(count):
        yield kinds[i % len(kinds)], seed * 1_000_000 + i // len(kinds)


def judged_here(cases: Iterable[Input]) -> Iterator[tuple[Input, Verdict]]:
    """Judges inputs in this process.

    Args:
        cases: The inputs.

    Yields:
        Each input with its verdict.
    """
    import jax

    root = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=root) as above:
        for i, (kind, number) in enumerate(cases, 1):
            folder = Path(above, "x")
            folder.mkdir()
            yield (kind, number), judge(kind, number, folder)
            shutil.rmtree(folder)
            if i % _CLEAR_EVERY == 0:
                jax.clear_caches()


def run(
    cases: Iterable[Input],
    *,
    jobs: int = 1,
    seconds: float | None = None,
    progress: Callable[[Tally], None] | None = None,
) -> Tally:
    """Judges inputs in separate processes.

    Args:
        cases: The inputs.
        jobs: The number of processes.
        seconds: The time after which no new input begins; None for no limit.
        progress: Called every few seconds.

    Returns:
        The verdicts.
    """
    tally, start, queue = Tally(), time.monotonic(), iter(cases)
    lock = threading.Lock()

    def next_input() -> Input | None:
        with lock:
            if seconds is not None and time.monotonic() - start > seconds:
                return None
            return next(queue, None)

    def add(entry: Input, verdict: Verdict) -> None:
        with lock:
            tally.add(entry, verdict)
            tally.seconds = time.monotonic() - start

    threads = [threading.Thread(target=_watch, args=(next_input, add)) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(10 / jobs)
        if progress:
            progress(tally)
    tally.seconds = time.monotonic() - start
    return tally


def _watch(next_input: Callable[[], Input | None], add: Callable[[Input, Verdict], None]) -> None:
    """Keeps one worker busy."""
    worker: _Worker | None = None
    while (entry := next_input()) is not None:
        worker = worker if worker and worker.is_alive else _Worker()
        verdict = worker.judged(entry)
        add(entry, verdict)
    if worker:
        worker.end()


class _Worker:
    """A process that judges one input after the other."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # Programs for a few numbers are compiled, and not optimized.
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def judged(self, entry: Input) -> Verdict:
        """Returns the verdict on one input."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(entry) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=_SILENCE)
        except Empty:
            self.end()
            return Verdict("hung", f"silent for {_SILENCE} seconds")
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            return Verdict("crashed", f"the process ended with {self.process.returncode}")
        data = json.loads(line)
        return Verdict(data["name"], data["why"], tuple(data["changes"]), data["is_readable"])

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def work() -> None:
    """Runs a worker: reads inputs from standard input, writes verdicts to standard output."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError, OSError):
        pass
    out, sys.stdout = sys.stdout, sys.stderr

    def requested_inputs() -> Iterator[Input]:
        """Yields the inputs from standard input."""
        for line in sys.stdin:
            kind, number = json.loads(line)
            yield kind, number

    for _, verdict in judged_here(requested_inputs()):
        print(json.dumps(asdict(verdict)), file=out, flush=True)


def table(tally: Tally) -> str:
    """Returns the verdicts by kind, in Markdown."""
    head = f"| kind | inputs | {' | '.join(VERDICTS)} |"
    lines = [head, "| --- " * (len(VERDICTS) + 2) + "|"]
    total = Counter[str]()
    for kind, counts in tally.counts.items():
        total += counts
        numbers = [sum(counts.values()), *(counts[name] for name in VERDICTS)]
        lines.append(f"| {kind} | {' | '.join(f'{n:,}' for n in numbers)} |")
    numbers = [tally.inputs, *(total[name] for name in VERDICTS)]
    lines.append(f"| **all** | {' | '.join(f'**{n:,}**' for n in numbers)} |")
    return "\n".join(lines)
