#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How many small mistakes in include/posbias the tests would find.

Each mutant is one such mistake: a sign flipped, an integer off by one, < for <=, == for !=, && for ||, a ! forgotten.
clang's syntax tree says where operators and integer literals are. A copy of the headers has every mutant in it, asleep
(mutants.hpp), so the tests are built once; an environment variable wakes one. A mutant is killed when a test that reaches
it fails, crashes, or takes far longer than it should.

Left out are constant expressions (static_assert, constexpr variables, template arguments) and operators of classes.
"""

import argparse
import concurrent.futures
import functools
import json
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
BUILD = WORK / "build"
TESTS = BUILD / "tests" / "posbias_tests"
HEADERS = ROOT / "include" / "posbias"
EQUIVALENT = Path(__file__).with_name("equivalent.txt")

FUNCTORS = {
    "+": "plus", "-": "minus", "*": "multiplies", "/": "divides", "<": "less", "<=": "less_equal", ">": "greater",
    ">=": "greater_equal", "==": "equal_to", "!=": "not_equal_to",
}  # fmt: skip
OTHER = {
    "+": "-", "-": "+", "*": "/", "/": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "&&": "||", "||": "&&", "+=": "-=", "-=": "+=",
}  # fmt: skip

# Their expressions are constants, or are never evaluated.
CONSTANT = {
    "StaticAssertDecl", "EnumConstantDecl", "ConceptDecl", "RequiresExpr", "ConstantExpr", "TemplateArgument",
    "NonTypeTemplateParmDecl", "TemplateTypeParmDecl", "UnaryExprOrTypeTraitExpr", "CXXNoexceptExpr",
    "SubstNonTypeTemplateParmExpr",
}  # fmt: skip
# Only in these is something executed.
EXECUTED = {"CompoundStmt", "CXXCtorInitializer", "FieldDecl", "ParmVarDecl"}


class Point(NamedTuple):
    """Where a mutation can be: an expression in a file, as offsets, with its operands."""

    file: str
    begin: int
    end: int
    token: int  # offset of the operator or literal
    kind: str  # the operator, "literal", or "unary -", "unary !"
    operands: tuple  # (begin, end) of each


class Mutant(NamedTuple):
    number: int
    file: str
    line: int
    text: str  # the line, with what is changed marked: {+ -> -}


# --- Finding points ----------------------------------------------------------------------------------------------------


def syntax_tree():
    """The declarations of namespace posbias in all headers, as clang sees them."""
    headers = [path.relative_to(HEADERS.parent) for path in sorted(HEADERS.rglob("*.hpp"))]
    source = WORK / "all.cpp"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(f'#include "{header}"\n' for header in headers))
    prefixes = [*filter(None, os.environ.get("CMAKE_PREFIX_PATH", "").split(":")), "/usr", "/usr/local"]
    include = [f"-I{prefix}/include{folder}" for prefix in prefixes for folder in ("/eigen3", "")]
    text = subprocess.run(
        ["clang++", "-std=c++20", "-fsyntax-only", "-w", f"-I{HEADERS.parent}", *include, "-Xclang", "-ast-dump=json",
         "-Xclang", "-ast-dump-filter=posbias", source], stdout=subprocess.PIPE, check=True,
    ).stdout.decode()  # fmt: skip
    decoder, at = json.JSONDecoder(), 0
    while (start := text.find("{", at)) >= 0:
        tree, at = decoder.raw_decode(text, start)
        yield tree


class Finder:
    """Collects points from syntax trees. What is instantiated comes again, at the same place."""

    def __init__(self):
        self.points, self.constant, self.file = set(), set(), ""

    def found(self):
        return sorted(self.points - self.constant)

    def visit(self, node, executed=False, constant=False):
        """Returns (begin, end) of a node as offsets into its file."""
        kind = node.get("kind")
        self.follow(node.get("loc", {}))
        span = self.span(node.get("range", {}))
        file = self.file
        if kind == "ConceptSpecializationExpr":  # clang 14 begins after the namespace
            qualifier = re.search(rb"(\w+::)*$", source_of(Path(file))[: span[0]])
            span = span[0] - len(qualifier[0]), span[1]
        constant = constant or kind in CONSTANT or (kind == "VarDecl" and node.get("constexpr", False))
        executed = executed or kind in EXECUTED
        condition = node.get("hasInit", 0) + node.get("hasVar", 0) if node.get("isConstexpr") else None
        spans = [
            self.visit(child, executed, constant or i == condition) for i, child in enumerate(node.get("inner", []))
        ]
        if executed and span and all(spans) and file.startswith(f"{HEADERS}/"):
            point = point_of(node, Path(file), span, spans)
            if point:
                self.points.add(point)
            if point and constant:
                self.constant.add(point)
        return span

    def follow(self, location):
        """clang names a file only where it is another than before."""
        for place in (location, location.get("spellingLoc", {}), location.get("expansionLoc", {})):
            self.file = place.get("file", self.file)

    def span(self, range_):
        begin, end = range_.get("begin", {}), range_.get("end", {})
        self.follow(begin)
        self.follow(end)
        return (begin["offset"], end["offset"] + end["tokLen"]) if "offset" in begin and "offset" in end else None


@functools.cache
def source_of(path):
    return path.read_bytes()


def point_of(node, path, span, spans):
    """The point at a node, if its source reads as the node says; what the compiler adds of itself does not."""
    file, kind, operator = str(path.relative_to(HEADERS)), node["kind"], node.get("opcode")
    source = source_of(path)[slice(*span)]
    if kind in ("BinaryOperator", "CompoundAssignOperator") and operator in OTHER and len(spans) == 2:
        between = source_of(path)[spans[0][1] : spans[1][0]]
        if re.sub(rb"//.*", b"", between).strip() == operator.encode():
            return Point(file, *span, spans[0][1] + between.index(operator.encode()), operator, tuple(spans))
    if kind == "UnaryOperator" and operator in ("-", "!") and re.match(rf"{operator}[^=]".encode(), source):
        return Point(file, *span, span[0], f"unary {operator}", tuple(spans))
    if kind == "IntegerLiteral" and re.fullmatch(rb"[0-9][0-9a-fA-FxXuUlL']*", source):
        return Point(file, *span, span[0], "literal", (span,))
    return None


# --- Writing them ------------------------------------------------------------------------------------------------------


def edits_of(point, number):
    """(offset, bytes replaced, text, rank) of a point. At one offset what ends comes first, inner before outer; then what
    begins, outer before inner."""
    on = f"posbias_mutants::on({number})"
    begin, end = (1, point.begin - point.end), (0, point.end - point.begin)
    first, last = point.operands[0][0], point.operands[-1][1]
    width = len(point.kind)
    if point.kind in FUNCTORS:
        both = f"std::{FUNCTORS[point.kind]}<>, std::{FUNCTORS[OTHER[point.kind]]}<>"
        return [
            (first, 0, f"posbias_mutants::either<{both}>({number}, ", begin),
            (point.token, width, ",", begin),
            (last, 0, ")", end),
        ]
    if point.kind in ("&&", "||"):  # a || b is !(!a && !b)
        return [
            (first, 0, "((bool(", begin),
            (point.token, width, f") != {on}) {point.kind} (bool(", begin),
            (last, 0, f") != {on}) != {on})", end),
        ]
    if point.kind in ("+=", "-="):
        term, operand = point.operands[1][0], last - point.operands[1][0]
        return [(term, 0, f"posbias_mutants::term({number}, ", (1, -operand - 1)), (last, 0, ")", (0, operand + 1))]
    if point.kind == "unary !":
        return [(point.begin, 1, "(bool(", begin), (point.end, 0, f") == {on})", end)]
    if point.kind == "unary -":
        return [(point.begin, 1, f"posbias_mutants::minus({number}, ", begin), (point.end, 0, ")", end)]
    return [(point.begin, 0, f"posbias_mutants::literal({number}, ", begin), (point.end, 0, ")", end)]


def changes_of(point, text):
    """What is shown in place of a point's token, for each of its mutants."""
    if point.kind == "literal":
        return [f"{{{text} + 1}}", f"{{{text} - 1}}"]
    if point.kind.startswith("unary "):
        return [f"{{no {text[0]}}}"]
    return [f"{{{point.kind} -> {OTHER[point.kind]}}}"]


def mutated(points):
    """What the headers are with all mutants in them, by file; and the mutants."""
    texts, mutants, by_file = {}, [], defaultdict(list)
    for point in points:
        by_file[point.file].append(point)
    for file, in_file in by_file.items():
        text = (HEADERS / file).read_bytes()
        edits = []
        for point in in_file:
            edits += edits_of(point, len(mutants))
            start, end = text.rfind(b"\n", 0, point.token) + 1, text.find(b"\n", point.token)
            token = point.token, point.end if point.kind == "literal" else point.token + len(point.kind.split()[-1])
            for change in changes_of(point, text[point.begin : point.end].decode()):
                marked = text[start : token[0]].decode() + change + text[token[1] : end].decode()
                line = text.count(b"\n", 0, point.token) + 1
                mutants.append(Mutant(len(mutants), file, line, " ".join(marked.split())))
        edits.sort(key=lambda edit: (edit[0], edit[3]))
        written, at = [], 0
        for offset, width, new, _ in edits:
            written += [text[at:offset], new.encode()]
            at = offset + width
        # The #include is in place of the first line, so that lines keep their numbers.
        rest = b"".join(written) + text[at:]
        texts[file] = b'#include "posbias/mutants.hpp"' + rest[rest.index(b"\n") :]
    return texts, mutants


def write_tree(texts):
    """The project with `texts` for headers. What is the same keeps its time, so that it is not built again."""
    wanted = {Path("include/posbias/mutants.hpp"): Path(__file__).with_name("mutants.hpp").read_bytes()}
    for folder in ("cmake", "include", "src", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                wanted.setdefault(path.relative_to(ROOT), path.read_bytes())
    wanted[Path("CMakeLists.txt")] = (ROOT / "CMakeLists.txt").read_bytes()
    for file, text in texts.items():
        wanted[Path("include/posbias") / file] = text
    for path in TREE.rglob("*"):
        if path.is_file() and path.relative_to(TREE) not in wanted:
            path.unlink()
    for file, text in wanted.items():
        path = TREE / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != text:
            path.write_bytes(text)


def build(jobs):
    flags = "-O1 -w -Wno-narrowing -D_GLIBCXX_ASSERTIONS --param ggc-min-expand=1000 --param ggc-min-heapsize=1000000"
    options = ["-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE="]
    options += ["-DPOSBIAS_TEST_ALL=OFF", "-DPOSBIAS_BUILD_EXAMPLES=OFF", "-DPOSBIAS_INSTALL=OFF"]
    # As in the gate: most of the library is compiled once, not with each of the tests.
    options += ["-DPOSBIAS_TEST_GATE=ON", "-DPOSBIAS_BUILD_COMPILED=ON", "-DPOSBIAS_TEST_OPTIONS=-O0"]
    for command in (
        ["cmake", "-S", TREE, "-B", BUILD, *options],
        ["cmake", "--build", BUILD, "--target", "posbias_tests", "-j", str(jobs)],
    ):
        log = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if log.returncode:
            sys.exit(log.stdout)


# --- Running tests -----------------------------------------------------------------------------------------------------


def run(tests, seconds=None, **environment):
    """(passed, CPU seconds). A limit of CPU time has an elapsed one beside it, for threads that wait for ever."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if seconds:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))

    names = ",".join('"' + name.replace("\\", "\\\\").replace(",", "\\,") + '"' for name in tests)
    child = subprocess.Popen(
        [TESTS, "--abort", names], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )  # fmt: skip
    timer = threading.Timer(30 + 20 * seconds, child.kill) if seconds else None
    if timer:
        timer.start()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if timer:
        timer.cancel()
    return child.returncode == 0, usage.ru_utime + usage.ru_stime


def names_of_tests():
    for options in (["--list-test-names-only"], ["--list-tests", "--verbosity", "quiet"]):  # Catch2 2 and 3
        listed = subprocess.run([TESTS, *options], capture_output=True, text=True, check=False).stdout
        names = [line.strip() for line in listed.splitlines() if line.strip()]
        if len(names) > 1:
            return names
    sys.exit("no tests")


def reach(count, jobs):
    """For each test the CPU seconds it takes, and for each mutant the tests that reach it, quickest first; None where the
    operator turns out to be of a class. Kept until the tests are built anew."""
    kept = WORK / "reached.json"
    if kept.exists() and kept.stat().st_mtime > TESTS.stat().st_mtime:
        return json.loads(kept.read_text())

    def record(indexed):
        index, name = indexed
        path = WORK / f"reached_{index}"
        passed, seconds = run([name], POSBIAS_MUTANTS_REACHED=path)
        if not passed:
            sys.exit(f"fails without a mutant: {name}")
        reached = path.read_bytes()
        path.unlink()
        return name, seconds, reached

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        records = sorted(pool.map(record, enumerate(names_of_tests())), key=lambda r: r[1])
    seconds = {name: s for name, s, _ in records}
    by_mutant = []
    for number in range(count):
        tests = [name for name, _, reached in records if reached[number] == 1]
        is_class = not tests and any(reached[number] == 2 for _, _, reached in records)
        by_mutant.append(None if is_class else tests)
    kept.write_text(json.dumps([seconds, by_mutant]))
    return seconds, by_mutant


def killed(mutant, tests, seconds):
    """Runs the tests that reach it in batches that double, quickest tests first, until one fails."""
    batch, budget = [], 1
    for i, test in enumerate(tests):
        batch.append(test)
        total = sum(seconds[t] for t in batch)
        if total > budget or i + 1 == len(tests):
            passed, _ = run(batch, seconds=5 + 3 * total, POSBIAS_MUTANT=mutant.number)
            if not passed:
                return True
            batch, budget = [], 2 * budget
    return False


# --- Reporting ---------------------------------------------------------------------------------------------------------


def known_equivalents():
    """{(file, text): heading} of equivalent.txt, whose headings begin with #, and whose mutants read `file: text`."""
    known, heading = {}, ""
    for line in EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.strip():
            file, text = line.split(": ", 1)
            known[file, text] = heading
    return known


def report(mutants, outcomes, sampled):
    rows = defaultdict(lambda: defaultdict(int))
    for mutant in mutants:
        rows[mutant.file]["in all"] += 1
    for mutant in sampled:
        rows[mutant.file]["sampled"] += 1
        rows[mutant.file][outcomes[mutant]] += 1
    columns = ["in all", "sampled", "killed", "equivalent", "speed only", "survived", "not reached"]
    print(f"{'file':44}" + "".join(f"{c:>13}" for c in columns) + f"{'killed %':>11}")
    total = defaultdict(int)
    for file in sorted(rows):
        for column in columns:
            total[column] += rows[file][column]
    for file, row in [*sorted(rows.items()), ("all", total)]:
        alive = row["survived"] + row["not reached"]
        rate = f"{100 * row['killed'] / (row['killed'] + alive):.1f}" if row["killed"] + alive else "-"
        print(f"{file:44}" + "".join(f"{row[c]:13}" for c in columns) + f"{rate:>11}")
    for kind in ("survived", "not reached"):
        here = [mutant for mutant in sampled if outcomes[mutant] == kind]
        if here:
            print(f"\n{kind}:")
        for mutant in here:
            print(f"{mutant.file}:{mutant.line}: {mutant.text}")


def main():
    parser = argparse.ArgumentParser(prog="./run mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("--sample", type=int, default=500, metavar="N", help="how many mutants, evenly spread; 0 for all")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="which of them")
    parser.add_argument("--file", default="*", metavar="GLOB", help="headers below include/posbias, such as 'bias/*'")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes at a time")
    arguments = parser.parse_args()

    finder = Finder()
    for tree in syntax_tree():
        finder.visit(tree)
    texts, mutants = mutated(finder.found())
    if len(mutants) > 16384:
        sys.exit("mutants.hpp has room for 16384 mutants")
    there = Counter((mutant.file, mutant.text) for mutant in mutants)
    stale = [f"{there[key]} mutants are {key[0]}: {key[1]}" for key in known_equivalents() if there[key] != 1]
    if stale:
        sys.exit("equivalent.txt: not one, but\n  " + "\n  ".join(stale))
    write_tree(texts)
    print(f"{len(mutants)} mutants; building the tests with them", file=sys.stderr)
    build(arguments.jobs)
    print("Recording which tests reach them", file=sys.stderr)
    seconds, by_mutant = reach(len(mutants), arguments.jobs)

    mutants = [m for m in mutants if by_mutant[m.number] is not None and fnmatch(m.file, arguments.file)]
    count = min(arguments.sample, len(mutants)) or len(mutants)
    first = random.Random(arguments.seed).random()
    sampled = [mutants[int((i + first) * len(mutants) / count)] for i in range(count)]
    known, outcomes = known_equivalents(), {}

    def judge(mutant):
        tests = by_mutant[mutant.number]
        if (mutant.file, mutant.text) in known:
            heading = known[mutant.file, mutant.text]
            outcomes[mutant] = "speed only" if heading.startswith("Speed only") else "equivalent"
        elif not tests:
            outcomes[mutant] = "not reached"
        else:
            outcomes[mutant] = "killed" if killed(mutant, tests, seconds) else "survived"
            if outcomes[mutant] == "survived":
                print(f"survived: {mutant.file}:{mutant.line}: {mutant.text}", file=sys.stderr)

    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for done, _ in enumerate(pool.map(judge, random.Random(arguments.seed).sample(sampled, count)), 1):
            if done % 50 == 0:
                print(f"{done} of {count}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    report(mutants, outcomes, sampled)


if __name__ == "__main__":
    main()
