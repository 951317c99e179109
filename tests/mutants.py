"""Put small faults into mapillary_uploader.py, one at a time, and see which of them no test notices.

    nice python tests/mutants.py                    # some 160 mutants of all chapters
    python tests/mutants.py --chapter client        # the chapters with that in their name
    python tests/mutants.py --only 1234             # every mutant of a line
    python tests/mutants.py --seed 2 --count 400    # others, more

Rule and seed choose the mutants: a comparison swapped or weakened, `and` for `or`, `not` dropped, a condition always True
or False, a number or a flag changed, + for -, min for max, a `raise`, a call or the setting of an attribute taken out,
another value returned. The run first measures which test reaches which statement, in processes too. Each mutant then
meets the tests that reach it, quick and special ones first, until one fails, twice, or hangs. What was found is kept in
--place: a run that was broken off goes on, and where tests have changed only survivors are tried again. An empty folder
makes a fresh start. A whole run of 218 mutants, 21 of which survived, took 53 minutes on two cores.
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT, MODULE = Path(__file__).parent.parent, "mapillary_uploader.py"
LEFT_OUT = ("test_style.py", "test_installing.py")
MAP_TESTS, MAP = "test_map.py", "Map"  # a browser's, for that chapter alone
FEWEST = 8  # mutants of a chapter
SWAPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "in": "not in", "not in": "in"}
SWAPS |= {"is": "is not", "is not": "is", "and": "or", "or": "and", "-": "+", "+": "-"}
SWAPS |= {"min": "max", "max": "min", "any": "all", "all": "any"}
OPERATOR = re.compile(r"\b(?:not\s+in|is\s+not|in|is|and|or)\b|[<>=!]=|[-+<>]")
PROBE = """
def _reached(line, seen=set()):
    import contextlib, os
    key = line, os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if key not in seen:
        seen.add(key)
        with contextlib.suppress(OSError), open({!r}, "a") as stream:
            stream.write("%d %s\\n" % key)

"""
Owner = int | frozenset[str]  # who runs a node: a statement's line; outside of functions, users of names defined there


class Mutant(NamedTuple):
    """A change: where, what stands there instead, and the lines of statements that may show it."""

    chapter: str
    line: int
    start: int  # offsets in the text
    end: int
    instead: str
    reach: frozenset[int]


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


class Module:
    """The module's text, and what may be changed in it."""

    def __init__(self, source: str) -> None:
        self.source, self.lines = source, source.splitlines(keepends=True)
        self.starts = [0, *accumulate(map(len, self.lines))]
        banners = re.finditer(r"^# -+\n# ([^:\n]+).*\n# -+$", source, re.MULTILINE)
        self.chapters = [(1, "Head"), *((source.count("\n", 0, banner.start()), banner[1]) for banner in banners)]
        self.owners: dict[ast.AST, Owner] = {}
        self._own(ast.parse(source), frozenset(), False)
        self.users: dict[str, set[Owner]] = defaultdict(set)
        for node, owner in self.owners.items():
            if name := getattr(node, "attr", None) or getattr(node, "id", None):
                self.users[name].add(owner)

    def _own(self, node: ast.AST, owner: Owner, inside: bool) -> None:
        if inside and isinstance(node, ast.stmt) and not self.lines[node.lineno - 1].lstrip().startswith("elif "):
            owner = node.lineno
        elif not inside and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            owner = frozenset({node.name})
        elif not inside and isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            owner = frozenset(part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))
        self.owners[node] = owner
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                untold = name == "decorator_list" and ast.unparse(child).startswith(("dataclass", "lru_cache"))
                untold |= name in ("annotation", "returns") or isinstance(child, ast.JoinedStr)
                if isinstance(child, ast.AST) and not untold:
                    self._own(child, owner, inside or (name == "body" and isinstance(node, ast.FunctionDef)))

    def reach(self, owner: Owner) -> frozenset[int]:
        """The lines that run a node, or that use what is defined by it, directly or by way of other definitions."""
        lines, names, todo = set[int](), set[str](), [owner]
        for owner in todo:
            if isinstance(owner, int):
                lines.add(owner)
            else:
                todo += [user for name in owner - names for user in self.users[name]]
                names |= owner
        return frozenset(lines)

    def span(self, node: Any) -> tuple[int, int]:
        """The first and last offset of a node in the text."""
        ends = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
        first, last = (self.starts[line - 1] + len(self.lines[line - 1].encode()[:at].decode()) for line, at in ends)
        return first, last

    def mutants(self) -> Iterator[Mutant]:
        """All that there are."""
        for node, owner in self.owners.items():
            for what, instead in changes(node) if (reach := self.reach(owner)) else ():
                if isinstance(what, tuple):
                    start, end = self.span(what[0])[1], self.span(what[1])[0]
                    between = re.sub("#.*", lambda comment: " " * len(comment[0]), self.source[start:end])
                    if found := OPERATOR.search(between):
                        start, end = start + found.start(), start + found.end()
                        instead = [SWAPS[" ".join(found[0].split())]]
                else:
                    start, end = self.span(what)
                line = self.source.count("\n", 0, start) + 1
                chapter = [name for first, name in self.chapters if first <= line][-1]
                yield from (Mutant(chapter, line, start, end, text, reach) for text in instead)

    def choose(self, seed: int, count: int, chapters: str, only: list[int]) -> Iterator[Mutant]:
        """The mutants of a seed: of each chapter as many as its share of all places, but a few at least."""
        mutants = list(self.mutants())
        places = Counter(chapter for chapter, *_ in {(each.chapter, each.start, each.end) for each in mutants})
        for _, chapter in self.chapters:
            own = [mutant for mutant in mutants if mutant.chapter == chapter]
            random.Random(f"{seed} {chapter}").shuffle(own)
            one_a_place = list({(mutant.start, mutant.end): mutant for mutant in own}.values())
            share = max(FEWEST, round(count * places[chapter] / places.total()))
            if chapters.casefold() in chapter.casefold():
                yield from one_a_place[:share] if not only else [mutant for mutant in own if mutant.line in only]

    def probed(self, log: Path) -> str:
        """The module that writes into a log which test has reached which statement."""
        lines = list(self.lines)
        for node, owner in self.owners.items():
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, ast.stmt) and owner == node.lineno and not text:
                at = min([owner, *(part.lineno for part in getattr(node, "decorator_list", []))]) - 1
                lines[at] = f"{' ' * node.col_offset}_reached({owner})\n" + lines[at]
        first = next(at for at, line in enumerate(lines) if line.startswith(("@", "def ", "class ")))
        return "".join([*lines[:first], PROBE.format(str(log)), *lines[first:]])

    def text(self, mutant: Mutant) -> str:
        """A mutant to be read."""
        before, line = self.source[mutant.start : mutant.end], self.lines[mutant.line - 1].strip()
        place = f"{mutant.chapter}: {MODULE}:{mutant.line}: "
        return place + f"{' '.join(before.split())} → {mutant.instead}" + f"   in: {line}" * (line != before)


class Trial:
    """Two copies of the tree, in which tests run, and a file of what they have shown."""

    def __init__(self, module: Module, place: Path) -> None:
        self.module, self.file = module, place / "found.jsonl"
        self.trees: queue.Queue[Path] = queue.Queue()
        for tree in (place / "1" / "tree", place / "2" / "tree"):
            shutil.rmtree(tree.parent, ignore_errors=True)
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".*_cache", ".hypothesis", "__pycache__"))
            self.trees.put(tree)
        known = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {(of, what): value for of, what, value in map(json.loads, known)}
        files = set((ROOT / "tests").glob("*.py")) - {Path(__file__)}
        tests = sorted(path for path in files if path.name.startswith("test_") and path.name not in LEFT_OUT)
        self.of_module, self.of_all = sha([ROOT / MODULE]), sha([ROOT / MODULE, *files])
        self.of_helpers = sha([ROOT / MODULE, *files.difference(tests)])
        self.seconds: dict[str, float] = {}
        self.reached: dict[str, list[int]] = {}  # the lines of statements, by test
        for measured in self.both(self.measure, tests):
            self.seconds |= {test: seconds for test, (seconds, _) in measured.items()}
            self.reached |= {test: lines for test, (_, lines) in measured.items()}

    def both(self, step: Callable[[Path, Any], tuple[Any, str]], things: list[Any]) -> Iterator[Any]:
        """What a step finds out of each thing, two at once; it is told too."""

        def one(thing: Any) -> tuple[Any, str]:
            tree = self.trees.get()
            try:
                return step(tree, thing)
            finally:
                self.trees.put(tree)

        with ThreadPoolExecutor(2) as pool:
            for number, (value, text) in enumerate(pool.map(one, things), 1):
                print(f"{number}/{len(things)} {text}", flush=True)
                yield value

    def keep(self, of: str, what: str, value: Any) -> None:
        """Remember a finding, and of which files it holds."""
        self.known[of, what] = value
        with open(self.file, "a") as stream:
            stream.write(json.dumps([of, what, value]) + "\n")

    def pytest(self, tree: Path, source: str, words: list[str], patience: float) -> tuple[int, dict[str, Any]]:
        """Run tests of a module; the exit code, and of each test its outcome and how long it took."""
        module, report, temporary = tree / MODULE, tree / "report.xml", tree.parent / "tmp"
        module.write_text(source, encoding="utf-8")
        os.utime(module, (stamp := hash(source) % 10**9, stamp))  # byte code of another mutant doesn't count
        report.unlink(missing_ok=True)
        temporary.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
        command += ["-o", f"faulthandler_timeout={patience:.0f}", "-o", "faulthandler_exit_on_timeout=true"]
        env, null = os.environ | {"TMPDIR": str(temporary)}, subprocess.DEVNULL
        run = subprocess.Popen(command, cwd=tree, env=env, stdin=null, stdout=null, stderr=null, start_new_session=True)
        ended = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            ended = run.wait(20 * patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # with what it has started
        run.wait()
        shutil.rmtree(temporary, ignore_errors=True)
        if ended in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL):
            raise SystemExit(f"pytest was ended from outside, by signal {-ended}: that says nothing of a mutant")
        outcomes = {}
        for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
            name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            outcomes[name] = (next((child.tag for child in case), "passed"), float(case.get("time", 0)))
        return run.returncode, outcomes

    def measure(self, tree: Path, file: Path) -> tuple[dict[str, Any], str]:
        """How long each test of a file takes, and which statements it reaches."""
        of, log = self.of_helpers + sha([file]), tree / "reached.log"
        if (of, file.name) not in self.known:
            log.write_text("")
            outcomes = self.pytest(tree, self.module.probed(log), [f"tests/{file.name}"], 300)[1]
            if not outcomes:
                raise SystemExit(f"the tests of {file.name} can't be measured")
            lines = defaultdict[str, set[int]](set)
            for line, _, test in (entry.partition(" ") for entry in log.read_text().splitlines()):
                lines[test].add(int(line))
            passed = {test: (time, sorted(lines[test])) for test, (how, time) in outcomes.items() if how == "passed"}
            self.keep(of, file.name, passed)
            for test, (how, _) in outcomes.items():
                if how not in ("passed", "skipped"):
                    print(f"not counted, for it fails as it is: {test}")
        tests = self.known[of, file.name]
        return tests, f"{file.name}: {len(tests)} tests, {sum(seconds for seconds, _ in tests.values()):.0f} s"

    def order(self, mutant: Mutant) -> list[str]:
        """The tests that reach a mutant, quick and special ones first."""
        tests = [test for test, lines in self.reached.items() if not mutant.reach.isdisjoint(lines)]
        tests = [test for test in tests if mutant.chapter == MAP or MAP_TESTS not in test]
        return sorted(tests, key=lambda test: (self.seconds[test] + 0.1) * len(self.reached[test]))

    def judge(self, tree: Path, mutant: Mutant) -> tuple[str, str]:
        """Which test notices a mutant, "" where none does."""
        what = f"{mutant.start} {mutant.instead}"
        killer = self.known.get((self.of_module, what)) or self.known.get((self.of_all, what))
        if killer is None:
            killer = self.killer(tree, mutant)
            self.keep(self.of_module if killer else self.of_all, what, killer)
        return killer, f"{killer or 'SURVIVED'}   {self.module.text(mutant)}"

    def killer(self, tree: Path, mutant: Mutant) -> str:
        """The first test that fails, and fails again; what ended the tests otherwise; "" where nothing did."""
        source = self.module.source[: mutant.start] + mutant.instead + self.module.source[mutant.end :]
        left = self.order(mutant)
        while left:
            patience = 60 + 5 * max(self.seconds[test] for test in left)
            code, outcomes = self.pytest(tree, source, ["-x", *left], patience)
            failed = next((test for test, (how, _) in outcomes.items() if how in ("failure", "error")), "")
            if outcomes and not code:
                return ""
            if failed not in left:
                return f"(exit code {code})"  # it hangs, or can't be imported
            if self.pytest(tree, source, [failed], patience)[0]:
                return failed
            left = left[left.index(failed) + 1 :]
        return ""


def sha(files: Iterable[Path]) -> str:
    """A mark of files' content."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


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
    module = Module((ROOT / MODULE).read_text(encoding="utf-8"))
    mutants = list(module.choose(given.seed, given.count, given.chapter, given.only or []))
    if given.list:
        print(*map(module.text, mutants), sep="\n")
        return
    trial = Trial(module, given.place)
    survivors = [mutant for mutant, killer in zip(mutants, list(trial.both(trial.judge, mutants))) if not killer]
    print(f"\n{'':32} mutants  killed  survived")
    total, alive = (Counter(mutant.chapter for mutant in some) for some in (mutants, survivors))
    total["all"], alive["all"] = len(mutants), len(survivors)
    for name, of in total.items():
        print(f"{name:32} {of:7} {(of - alive[name]) / of:7.0%} {alive[name]:9}")
    for mutant in survivors:
        print(module.text(mutant) + "   (reached by no test)" * (not trial.order(mutant)))


if __name__ == "__main__":
    main()
