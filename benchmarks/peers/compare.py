# SPDX-License-Identifier: MIT
"""posbias beside the Python packages: the same work on the same tensors, in turns, in one process.

./run bench --peers [--filter REGEX] [--rounds N] [--threads 1,2] [--markdown FILE]
"""

import argparse
import datetime
import os
import pathlib
import platform
import re
import resource
import sys
import time
import warnings

import torch

import ours


def cpu():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def header(packages):
    return (
        f"{cpu()}, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}, Python {platform.python_version()}, "
        f"{datetime.date.today()}; {packages.versions()}"
    )


class Load:
    """Seconds of processor time that this and other programs used since it was made."""

    @staticmethod
    def now():
        with open("/proc/stat") as stat:
            user, nice, system, idle, wait, *others = map(int, stat.readline().split()[1:])
        ticks = os.sysconf("SC_CLK_TCK")
        usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        mine = sum(u.ru_utime + u.ru_stime for u in usage)
        return mine, (user + nice + system + sum(others[:3])) / ticks, time.monotonic()

    def __init__(self):
        self.start = self.now()

    def __str__(self):
        mine, all_, wall = (now - then for now, then in zip(self.now(), self.start))
        return f"{wall:.0f} s; other programs kept {max(0.0, all_ - mine) / wall:.1f} of {os.cpu_count()} cores busy meanwhile"


columns = ("module", "work", "threads", "best peer", "theirs ms", "ours ms", "theirs / ours (min–median–max)", "others")


def cells(result):
    others = "; ".join(f"{name}: {known}" for name, known in result.others) or "–"
    about = (result.row.module, result.row.work, str(result.threads))
    if not result.best:
        return *about, "none", "–", "–", "–", others
    low, middle, high = result.ratios
    return (
        *about,
        result.best,
        f"{result.theirs * 1e3:.3g}",
        f"{result.ours * 1e3:.3g}",
        f"{low:.3g} – {middle:.3g} – {high:.3g}" + (" (behind)" if middle < 1 else ""),
        others,
    )


def markdown(lines):
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def plain(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) - 1)]
    return "\n".join("  ".join([cell.ljust(w) for cell, w in zip(line, widths)] + [line[-1]]) for line in lines)


def main():
    parser = argparse.ArgumentParser(prog="./run bench --peers", description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--filter", default="", help="only rows whose name the regular expression is found in")
    parser.add_argument("--rounds", type=int, default=30, help="at most so many turns with the best peer (default 30)")
    parser.add_argument("--threads", default="1,2", help="numbers of threads (default 1,2)")
    parser.add_argument("--markdown", help="write the table to this file too")
    options = parser.parse_args()

    warnings.filterwarnings("ignore")
    ours.load_library(options.library)
    import packages  # slow: after the options have been checked
    import attention
    import biases
    import embeddings
    from measure import measure

    def log(line):
        print(line, file=sys.stderr, flush=True)

    rows = [r for r in embeddings.rows + biases.rows + attention.rows if re.search(options.filter, r.name)]
    results, load = [], Load()
    for row in rows:
        for threads in map(int, options.threads.split(",")):
            start = time.monotonic()
            log(f"{row.name}, {threads} thread{'s' if threads > 1 else ''}")
            with torch.no_grad():
                results.append(measure(row, threads, options.rounds, budget=1.5, log=log))
            log(f"    ({time.monotonic() - start:.0f} s)")

    lines = [cells(result) for result in results]
    about = f"{header(packages)}; {load}"
    notes = biases.notes
    print("\n".join([about, "", plain([columns, *lines]), "", *notes]))
    if options.markdown:
        table = markdown([columns, ["---"] * len(columns), *lines])
        pathlib.Path(options.markdown).write_text("\n".join([about, "", table, "", *notes]) + "\n")


main()
