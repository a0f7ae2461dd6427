# SPDX-License-Identifier: MIT
"""What a row of the table is, and how it is measured.

Both sides get copies of the same inputs; what they return is compared once, before anything is timed. Then ours and a
peer take turns, so that what disturbs one disturbs the other, and each turn gives a ratio. All peers take a few turns;
the fastest of them takes the rest.
"""

import dataclasses
import gc
import resource
import statistics
import time
from collections.abc import Callable

import torch

# After a parallel region libgomp's threads spin for 10 ms (measured: 10.2 ms of CPU time in a sleep of 30 ms), on the
# core that posbias would use. Both sides rest for longer than that after each turn, where there are two threads.
REST = 0.015
FAULTS = 500  # 2 MB of new memory: a turn with more is left out if there are others
HOPELESS = 5  # times slower than ours: one turn says enough, unless it is the best


@dataclasses.dataclass
class Row:
    """One line: a module, a piece of work, and how to make it.

    `make(threads)` returns inputs, ours and peers: `ours(*inputs)` returns a function without arguments that does the
    work and returns the results, in tensors that it writes over each time.
    """

    module: str
    work: str
    make: Callable
    tolerance: float = 1e-4  # of the largest number

    @property
    def name(self):
        return f"{self.module}: {self.work}"


class Peer:
    """`run(*inputs)` does a peer's work and returns results, new or its inputs modified: eager, and compiled."""

    def __init__(self, name, run, arrange=lambda *inputs: inputs, result=lambda out: out, modes=("", "compiled")):
        self.name, self.run, self.arrange, self.result, self.modes = name, run, arrange, result, modes

    def prepare(self, mode, inputs):
        inputs = self.arrange(*(tensor.clone() for tensor in inputs))
        run = compiled(self.run) if mode else self.run
        return lambda: run(*inputs)


class Backward(Peer):
    """Only the backward pass of `run(*inputs)` is timed; gradients of what `wrt(*inputs)` returns, for `grad`."""

    def __init__(self, name, run, wrt, grad, **others):
        super().__init__(name, run, **others)
        self.wrt, self.grad = wrt, grad

    def prepare(self, mode, inputs):
        inputs = self.arrange(*(tensor.clone() for tensor in inputs))
        wrt = [tensor.requires_grad_() for tensor in self.wrt(*inputs)]
        with torch.inference_mode(False), torch.enable_grad():
            out = (compiled(self.run) if mode else self.run)(*inputs)
        return lambda: torch.autograd.grad(out, wrt, self.grad, retain_graph=True)


def compiled(function):
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = False  # so that a backward pass can run many times
    return torch.compile(function, dynamic=False, fullgraph=True)


@dataclasses.dataclass
class Result:
    row: Row
    threads: int
    best: str = ""
    theirs: float = 0  # medians, in seconds
    ours: float = 0
    ratios: tuple = ()
    others: list = dataclasses.field(default_factory=list)  # (name, what is known of it)


def seconds(run, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def warmed_up(ours, theirs, most):
    """The times of a turn without page faults worth mentioning, or of the last of `most`: until memory that is freed fits
    what is made next, there are some."""
    for _ in range(most):
        before = faults()
        times = seconds(ours, 1), seconds(theirs, 1)
        if faults() - before < FAULTS:
            break
    return times


def alternate(ours, theirs, rounds, budget, threads, quick=False):
    """Times of ours and theirs in turns: as many rounds as fit `budget` seconds, at least 5, or 2 if `quick`."""
    rest = REST if threads > 1 else 0
    guess = warmed_up(ours, theirs, 2 if quick else 6)
    if quick and guess[1] > HOPELESS * guess[0]:
        return [guess]
    repeats = [max(1, int(2e-4 / t)) for t in guess]
    cost = sum(t * n for t, n in zip(guess, repeats)) + 2 * rest
    turns = []
    gc.disable()
    for _ in range(max(2 if quick else 5, min(rounds, int(budget / cost)))):
        turn, before = [], faults()
        for run, count in zip((ours, theirs), repeats):
            time.sleep(rest)
            turn.append(seconds(run, count))
        turns.append((faults() - before, turn))
    gc.enable()
    without_faults = [turn for count, turn in turns if count < FAULTS]
    return without_faults if len(without_faults) > 1 else [turn for _, turn in turns]


def tensors(results):
    return [results] if isinstance(results, torch.Tensor) else list(results)


def difference(ours, theirs):
    """The largest difference, as a share of the largest number, or what is wrong."""
    shares = []
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        if a.shape != b.shape:
            return f"its shape is {tuple(b.shape)}, not {tuple(a.shape)}"
        a, b = (t.flatten(0, -3) if t.dim() > 3 else t[None] for t in (a, b))
        for x, y in zip(a, b):  # parts take less memory than all at once
            shares.append(((x - y).abs_().max(), y.abs().max()))
    differences, largest = torch.tensor(shares).T
    return (differences.max() / largest.max().clamp(min=1e-30)).item()  # NaN if there is any


def rejected(peer, mode, row, inputs, expected):
    """Why a peer is not compared, or how far its results are from ours, and what to time."""
    try:
        theirs = peer.prepare(mode, inputs)
        found = difference(expected, peer.result(theirs()))
    except Exception as error:  # whatever it is, it is the peer's
        return f"does not run ({type(error).__name__}: {str(error).splitlines()[0][:90]})", None
    if isinstance(found, str):
        return f"computes something else: {found}", None
    if not found <= row.tolerance:
        return f"computes something else: differs by {found:.2g} of the largest number", None
    return found, theirs


def measure(row, threads, rounds, budget, log):
    """The row's result, and on the way a line for each peer."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    inputs, make_ours, peers = row.make(threads)
    expected = make_ours(*(tensor.clone() for tensor in inputs))()
    ours = make_ours(*(tensor.clone() for tensor in inputs))
    found = []
    result = Result(row, threads)
    for peer in peers:
        for mode in peer.modes:
            name = f"{peer.name}, {mode}" if mode else peer.name
            known, theirs = rejected(peer, mode, row, inputs, expected)
            if theirs is None:
                log(f"    {name}: {known}")
                result.others.append((name, known))
                continue
            times = alternate(ours, theirs, rounds, budget / 6, threads, quick=True)
            ratio = statistics.median(t / o for o, t in times)
            log(f"    {name}: {ratio:.2f} x ours, results differ by {known:.1g}")
            found.append((ratio, name, theirs))
    if found:
        found.sort(key=lambda each: each[0])
        _, result.best, theirs = found[0]
        result.others = [(name, f"{ratio:.3g} ×") for ratio, name, _ in found[1:]] + result.others
        del found[1:]
        gc.collect()
        times = alternate(ours, theirs, rounds, budget, threads)
        result.ours, result.theirs = (statistics.median(side) for side in zip(*times))
        ratios = sorted(t / o for o, t in times)
        result.ratios = ratios[0], statistics.median(ratios), ratios[-1]
    return result
