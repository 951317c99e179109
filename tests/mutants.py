"""Put small faults into mapillary_uploader.py, one at a time, and see which of them no test notices.

    nice python tests/mutants.py                    # some 160 mutants of all chapters
    python tests/mutants.py --chapter client        # the chapters with that in their name
    python tests/mutants.py --only 1234             # every mutant of a line
    python tests/mutants.py --seed 2 --count 400    # others, more

A comparison swapped or weakened, `and` for `or`, `not` dropped, a condition always True or False, a number or a flag
changed, + for -, min for max, a `raise`, a call or the setting of an attribute taken out, another value returned. The
run first measures which test reaches which line, in processes too. Each mutant then meets the tests that reach it (of
a definition: that reach a line which names it), quick and special ones first, until one fails, twice, or hangs. What
was found is kept in --place, so that a run goes on where it was broken off; where tests have changed, survivors are
tried again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import coverage

ROOT, MODULE = Path(__file__).parent.parent, "mapillary_uploader.py"
SOURCE = (ROOT / MODULE).read_text(encoding="utf-8")
LINES = SOURCE.encode().splitlines(keepends=True)
LEFT_OUT = ("test_style.py", "test_installing.py")
SWAPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in", "not in": "in"}
SWAPS |= {"is": "is not", "is not": "is", "and": "or", "or": "and", "-": "+", "+": "-"}
SWAPS |= {"min": "max", "max": "min", "any": "all", "all": "any"}
OPERATOR = re.compile(rb"\b(?:not\s+in|is\s+not|in|is|and|or)\b|[<>=!]=|[-+<>]")
COVERAGERC = """[run]
include = */mapillary_uploader.py
data_file = {}/.coverage
parallel = true
patch = _exit
context = ${{PYTEST_CURRENT_TEST-}}
"""  # of processes that tests start; those of pytest's own process are set by pytest-cov
MEASURED = "import os, sys, pytest; os.environ['COVERAGE_PROCESS_START'] = os.path.abspath('.coveragerc'); sys.exit(pytest.main())"


class Mutant(NamedTuple):
    """A change: where, what stands there instead; the definition that it is part of, outside of functions."""

    chapter: str
    line: int
    start: int  # offsets in bytes
    end: int
    instead: str
    names: frozenset[str]

    def __str__(self) -> str:
        before = " ".join(SOURCE.encode()[self.start : self.end].decode().split())
        return f"{self.chapter}: {MODULE}:{self.line}: {before} → {self.instead}   in: {SOURCE.splitlines()[self.line - 1].strip()}"


def changes(node: ast.AST) -> Iterator[tuple[ast.AST | tuple[ast.expr, ast.expr], list[str]]]:
    """What may be changed of a node (of a pair, the operator between them), and what may stand there instead."""
    match node:
        case ast.Compare() | ast.BoolOp() | ast.BinOp(op=ast.Sub()):
            parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
            yield from ((pair, []) for pair in pairwise(parts))
        case ast.UnaryOp(op=ast.Not()):
            yield node, [f"({ast.unparse(node.operand)})"]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.comprehension(ifs=[test]):
            if not any(isinstance(part, ast.NamedExpr) for part in ast.walk(test)):
                yield test, ["True", "False"]
        case ast.Constant(value=bool(flag)):
            yield node, [str(not flag)]
        case ast.Constant(value=int(number) | float(number)):
            yield node, [str(number + 1), str(number - 1), str(number * 10 or 10)]
        case ast.Call(func=ast.Name(id="min" | "max" | "any" | "all" as name)):
            yield node.func, [SWAPS[name]]
        case ast.Raise() | ast.Expr(value=ast.Call()) | ast.AugAssign(target=ast.Attribute()):
            yield node, ["pass"]
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, ["pass"]
        case ast.Return(value=ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()) as value):
            yield value, [f"not ({ast.unparse(value)})"]
        case ast.Return(value=ast.Name() | ast.Attribute() | ast.Call() as value):
            yield value, ["None"]


def span(node: Any) -> tuple[int, int]:
    """The first and last offset of a node in the text."""
    ends = ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
    first, last = (sum(map(len, LINES[: line - 1])) + at for line, at in ends)
    return first, last


def nodes(
    node: ast.AST, names: frozenset[str] = frozenset(), inside: bool = False
) -> Iterator[tuple[ast.AST, frozenset[str]]]:
    """All that may be changed, outside of functions with the names that are defined there."""
    if not inside and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        names = names | {node.name}
    elif not inside and isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    yield node, frozenset() if inside else names
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            untold = name == "decorator_list" and ast.unparse(child).startswith(("dataclass", "lru_cache"))
            if isinstance(child, ast.AST) and not (
                untold or name in ("annotation", "returns") or isinstance(child, ast.JoinedStr)
            ):
                yield from nodes(child, names, inside or (name == "body" and isinstance(node, ast.FunctionDef)))


def mutants() -> Iterator[Mutant]:
    """All that there are."""
    banners = re.finditer(rb"^# -+\n# ([^:\n]+).*\n# -+$", SOURCE.encode(), re.MULTILINE)
    chapters = [(0, "Head"), *((banner.start(), banner[1].decode()) for banner in banners)]
    for node, names in nodes(ast.parse(SOURCE)):
        for what, instead in changes(node):
            if isinstance(what, tuple):
                start, end = span(what[0])[1], span(what[1])[0]
                between = re.sub(b"#.*", lambda comment: b" " * len(comment[0]), SOURCE.encode()[start:end])
                if found := OPERATOR.search(between):
                    start, end = start + found.start(), start + found.end()
                    instead = [SWAPS[" ".join(found[0].decode().split())]]
            else:
                start, end = span(what)
            line = SOURCE.encode().count(b"\n", 0, start) + 1
            chapter = [name for first, name in chapters if first <= start][-1]
            yield from (Mutant(chapter, line, start, end, text, names) for text in instead)


def chosen(given: argparse.Namespace) -> Iterator[Mutant]:
    """The mutants of a seed: of each chapter as many as its share of all places, but eight at least."""
    every = list(mutants())
    places = Counter(chapter for chapter, *_ in {(each.chapter, each.start, each.end) for each in every})
    for chapter in places:
        own = [mutant for mutant in every if mutant.chapter == chapter]
        random.Random(f"{given.seed} {chapter}").shuffle(own)
        one_a_place = list({(mutant.start, mutant.end): mutant for mutant in own}.values())
        share = max(8, round(given.count * places[chapter] / places.total()))
        if given.chapter.casefold() in chapter.casefold():
            yield from [mutant for mutant in own if mutant.line in given.only] if given.only else one_a_place[:share]


def pytest(tree: Path, words: list[str], patience: float) -> tuple[int, dict[str, tuple[str, float]]]:
    """Run tests in a tree; the exit code, and of each test its outcome and how long it took."""
    report, temporary = tree / "report.xml", tree.parent / "tmp"
    report.unlink(missing_ok=True)
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, *words, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["-o", f"faulthandler_timeout={patience:.0f}", "-o", "faulthandler_exit_on_timeout=true"]
    env, null = os.environ | {"TMPDIR": str(temporary)}, subprocess.DEVNULL
    run = subprocess.Popen(command, cwd=tree, env=env, stdin=null, stdout=null, stderr=null, start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(20 * patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # with what it has started
    shutil.rmtree(temporary, ignore_errors=True)
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        outcomes[name] = (next((child.tag for child in case), "passed"), float(case.get("time", 0)))
    return run.wait(), outcomes


class Trial:
    """Two copies of the tree, in which tests run, and a file of what they have shown."""

    def __init__(self, place: Path) -> None:
        self.file, self.trees = place / "found.jsonl", queue.Queue[Path]()
        for tree in (place / "1" / "tree", place / "2" / "tree"):
            shutil.rmtree(tree.parent, ignore_errors=True)
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".*_cache", ".hypothesis", "__pycache__"))
            self.trees.put(tree)
        self.known = dict(map(json.loads, self.file.read_text().splitlines())) if self.file.exists() else {}
        files = sorted((ROOT / "tests").glob("*.py"))
        self.of_module = hashlib.sha256(SOURCE.encode()).hexdigest()[:16]
        self.of_all = hashlib.sha256(b"".join(path.read_bytes() for path in (ROOT / MODULE, *files))).hexdigest()[:16]
        self.reached: dict[str, tuple[float, set[int]]] = {}  # by test: seconds, and lines
        tests = [path.name for path in files if path.name.startswith("test_") and path.name not in LEFT_OUT]
        for measured in self.both(self.measure, tests):
            self.reached |= {test: (seconds, {*lines}) for test, (seconds, lines) in measured.items()}

    def both(self, step: Any, things: list[Any]) -> Iterator[Any]:
        """What a step finds out of each thing, two at once; kept, and told."""

        def one(thing: Any) -> Any:
            keys = [f"{of} {thing}" for of in (self.of_module, self.of_all)]
            if (found := next((self.known[key] for key in keys if key in self.known), None)) is None:
                tree = self.trees.get()
                found = step(tree, thing)
                self.trees.put(tree)
                key = keys[not found or isinstance(found, dict)]  # a mutant that was noticed once is not tried again
                with open(self.file, "a") as stream:
                    stream.write(json.dumps([key, found]) + "\n")
            return thing, found

        with ThreadPoolExecutor(2) as pool:
            for number, (thing, found) in enumerate(pool.map(one, things), 1):
                told = f"{len(found)} tests" if isinstance(found, dict) else found or "SURVIVED"
                print(f"{number}/{len(things)} {told}   {thing}", flush=True)
                yield found

    def measure(self, tree: Path, file: str) -> dict[str, tuple[float, list[int]]]:
        """How long each test of a file takes, and which lines it reaches, in processes that it starts too."""
        (tree / MODULE).write_text(SOURCE, encoding="utf-8")
        (tree / ".coveragerc").write_text(COVERAGERC.format(tree))
        words = ["-c", MEASURED, "--cov", "--cov-context=test", "--cov-report=", f"tests/{file}"]
        outcomes = pytest(tree, words, 300)[1]
        data, lines = coverage.CoverageData(str(tree / ".coverage")), defaultdict[str, list[int]](list)
        data.read()
        for line, contexts in data.contexts_by_lineno(str(tree / MODULE)).items():
            for test in {re.split(r"\||  ?\(", context)[0] for context in contexts}:
                lines[test].append(line)
        for test in [test for test, (how, _) in outcomes.items() if how in ("failure", "error")]:
            print(f"not counted, for it fails as it is: {test}")
        return {test: (time, lines[test]) for test, (how, time) in outcomes.items() if how == "passed"}

    def order(self, mutant: Mutant) -> list[str]:
        """The tests that reach a mutant, quick and special ones first; a browser's for the map alone."""
        lines, names = {mutant.line}, "|".join(map(re.escape, mutant.names))
        if names:
            lines |= {at for at, line in enumerate(SOURCE.splitlines(), 1) if re.search(rf"\b({names})\b", line)}
        tests = [test for test, (_, reached) in self.reached.items() if not lines.isdisjoint(reached)]
        tests = [test for test in tests if mutant.chapter == "Map" or "test_map.py" not in test]
        return sorted(tests, key=lambda test: (self.reached[test][0] + 0.1) * len(self.reached[test][1]))

    def killer(self, tree: Path, mutant: Mutant) -> str:
        """The first test that fails, and fails again; what ended the tests otherwise; "" where nothing did."""
        text = SOURCE.encode()[: mutant.start] + mutant.instead.encode() + SOURCE.encode()[mutant.end :]
        (tree / MODULE).write_bytes(text)
        os.utime(tree / MODULE, (stamp := hash(text) % 10**9, stamp))  # byte code of another mutant doesn't count
        left = self.order(mutant)
        while left:
            patience = 60 + 5 * max(self.reached[test][0] for test in left)
            code, outcomes = pytest(tree, ["-m", "pytest", "-x", *left], patience)
            failed = next((test for test, (how, _) in outcomes.items() if how in ("failure", "error")), "")
            if outcomes and not code:
                return ""
            if failed not in left:
                return f"(exit code {code})"  # it hangs, or can't be imported
            if pytest(tree, ["-m", "pytest", failed], patience)[0]:
                return failed
            left = left[left.index(failed) + 1 :]
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    place = Path(tempfile.gettempdir(), "mutants")
    parser.add_argument("--chapter", default="", help="part of chapters' names")
    parser.add_argument("--only", type=int, action="append", metavar="LINE", help="all mutants of a line; repeatable")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=130, help="about how many, of all chapters")
    parser.add_argument("--place", type=Path, default=place, help="a folder to work in")
    parser.add_argument("--list", action="store_true", help="show the mutants, try none")
    given = parser.parse_args()
    some = list(chosen(given))
    if given.list or not some:
        print(*some, sep="\n")
        return
    trial = Trial(given.place)
    survivors = [mutant for mutant, killer in zip(some, list(trial.both(trial.killer, some))) if not killer]
    total, alive = (Counter(mutant.chapter for mutant in which) for which in (some, survivors))
    total["all"], alive["all"] = len(some), len(survivors)
    print(f"\n{'':32} mutants  killed  survived")
    for name, of in total.items():
        print(f"{name:32} {of:7} {(of - alive[name]) / of:7.0%} {alive[name]:9}")
    for mutant in survivors:
        print(mutant, "" if trial.order(mutant) else "  (reached by no test)")


if __name__ == "__main__":
    main()
