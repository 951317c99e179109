"""README "Exit codes", "Options": what a run prints for people, logs and programs, and how it exits."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from faults import FINISH, PHOTO, started, wait_until

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import PROGRAM, ROOT, FastClock, FastRun, Ran, environment, resume_of, run, upload, upload_here

SCHEMA = json.loads((Path(__file__).parent / "result.schema.json").read_text())
STARTED = shlex.join([sys.executable, str(PROGRAM)])
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


def tours(root: Path, count: int, first: int = 0) -> Path:
    """So many folders below `root`, each with a photo from a place of its own."""
    for number in range(first, first + count):
        factory.write_tour(root / f"tour {number}", factory.tour(1, latitude=40 + number / 10))
    return root


def spoil(folder: Path, *names: str) -> Path:
    """Put files into a folder that are no photos."""
    return factory.write_tour(folder, dict.fromkeys(names or ("bad.jpg",), b"no photo"))


def arrange(end: str, sandbox: Sandbox, folder: Path) -> list[str]:
    """Make a run come to such an end; the options that go with it."""
    first, resume = folder / "GS0001_calculated.jpg", folder / "mapillary_uploader.json"
    if end in ("not live", "overdue"):
        sandbox.live_after = 3600
    if end in ("published before", "live", "not live", "overdue"):
        assert upload_here(folder, sandbox).code == 0
    if end == "overdue":
        resume.write_text(re.sub(r'("published_at": )"[^"]*"', r'\1"2026-01-02T03:04:05.000Z"', resume.read_text()))
    if end in ("rejected", "left out"):
        spoil(folder)
    if end == "copied":
        (folder / "A copy.jpg").write_bytes(first.read_bytes())
    if end == "damaged":
        resume.write_text("{")
    if end == "held":
        for photo in mu.check_folder(folder).photos:
            sandbox.show(mu.description_of(photo))
    faults = {"unconfirmed": ("finish_upload", 503), "failed": ("mly.*jpg", 400), "refused": ("mly", 401)}
    if end in faults:
        sandbox.faults.append(Fault(f"POST /{faults[end][0]}", status=faults[end][1], times=None))
    options = {"dry": "--dry-run", "left out": "--skip-invalid", "young": "--min-age 600"}
    return options.get(end, "--check" if end in ("live", "not live", "overdue") else "").split()


def steps(result: Ran) -> list[str]:
    """The commands that a summary names."""
    return [line[line.index(STARTED) :] for line in result.out.splitlines() if STARTED in line]


def bash(command: str, sandbox: Sandbox, cwd: Path) -> Ran:
    """What a person does with a printed command."""
    words, env = ["bash", "-c", command], environment(sandbox)
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr)


def valid(result: Ran) -> dict[str, Any]:
    """The --json document, which is all that stands on stdout, and says the exit code."""
    jsonschema.validate(result.document, SCHEMA)
    assert result.out.count("\n") == 1 and result.document["exit_code"] == result.code
    return result.document


# ---- The next step ----


KEPT = "-o 2002 --utc-offset +02:00 --min-age 0 --patience 1 --workers 2 --retries 1 --skip-invalid -v --map"


def test_the_next_step_keeps_every_option(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    kept = shlex.split(f"{KEPT} '{tmp_path / 'the map.html'}'")
    output = ["--output", str(tmp_path / "out & about")]
    before = upload(folder, sandbox, "--dry-run", *kept, *output)
    words = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", *kept]
    assert [shlex.split(step) for step in steps(before)] == [[*words, *output]]
    after = bash(steps(before)[0], sandbox, tmp_path)
    assert after.code == 0 and [cluster.organization_id for cluster in sandbox.clusters] == ["2002"]
    assert [shlex.split(step) for step in steps(after)] == [[*words, "--check"]]  # which writes no --output
    assert bash(steps(after)[0], sandbox, tmp_path).out.endswith("\n  All live.\n")


HOSTILE = 'it\'s "$HOME" `touch pwned` $(touch pwned) !! *?[a] \\ & ; | # ~ {a,b} -x'


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", [HOSTILE, f"{HOSTILE}\n\r\x1b[31m'\x01", "Zürich 写真", os.fsdecode(b"caf\xe9 'A")])
def test_a_pasted_command_finds_the_folder_whatever_its_name(
    sandbox: Sandbox, tmp_path: Path, name: str, encoding: str
) -> None:
    folder = factory.write_tour(tmp_path / name, factory.tour(1))
    before = upload(folder, sandbox, "--dry-run", env={"PYTHONIOENCODING": encoding})
    assert not CONTROL.search(before.out + before.err) and len(before.out.splitlines()) == 3
    assert bash(steps(before)[0], sandbox, tmp_path).code == 0
    assert len(sandbox.published) == 1 and resume_of(folder) and not list(tmp_path.rglob("pwned"))


def test_the_next_step_names_the_program_as_it_was_started(folder: Path, tmp_path: Path) -> None:
    command = tmp_path / "mapillary-uploader"
    command.write_text(f"#!{sys.executable}\nimport mapillary_uploader\nmapillary_uploader.script()\n")
    command.chmod(0o755)
    settings: dict[str, Any] = {"capture_output": True, "text": True, "env": environment(PYTHONPATH=str(ROOT))}
    for words, cwd in (([str(command)], tmp_path), ([sys.executable, "mapillary_uploader.py"], ROOT)):
        done = subprocess.run([*words, "-d", str(folder), "--dry-run"], cwd=cwd, **settings)
        assert f"To upload: {shlex.join([*words, '-d', str(folder)])} -u NAME\n" in done.stdout


PRICE = "Nothing was sent. Mend them, or send the others (the photos left out would become a second sequence later): "
ENDINGS = {
    "published": ("Done. In some hours to days, see whether it is live: ", "--check"),
    "published before": ("To see whether it is live: ", "--check"),
    "not live": ("To look again: ", ""),
    "rejected": (PRICE, "--skip-invalid"),
    "held": ("If it isn't on Mapillary yet: ", "--republish ID"),
    "unconfirmed": ("Not finished. To go on: ", ""),
    "failed": ("Not finished. To go on: ", ""),
}


@pytest.mark.parametrize("end", ENDINGS)
def test_each_end_has_its_next_step(sandbox: Sandbox, folder: Path, end: str) -> None:
    says, change = ENDINGS[end]
    change = change.replace("ID", mu.check_folder(folder).sequences[0].uuid)
    options = arrange(end, sandbox, folder)
    result = upload(folder, sandbox, *options)
    words = ["-d", str(folder), "-u", "demo", *options, *change.split()]
    assert result.out.endswith(f"\n  {says}{STARTED} {shlex.join(words)}\n") and len(steps(result)) == 1
    if end == "held":
        after = bash(steps(result)[0], sandbox, folder)
        assert after.code == 0 and "--republish" not in steps(after)[0]


@pytest.mark.parametrize(("fault", "kept"), [(PHOTO, True), (FINISH, False)])
def test_the_next_step_republishes_only_what_this_run_has_not_tried_to(
    sandbox: Sandbox, folder: Path, fault: str, kept: bool
) -> None:
    arrange("held", sandbox, folder)
    again = shlex.split(steps(upload(folder, sandbox))[0])[2:]
    sandbox.faults.append(Fault(fault, status=500, times=None))
    result = run(*again, "--patience", "0", env=environment(sandbox))
    assert result.code == 1 and ("--republish" in steps(result)[0]) is kept
    sandbox.clear_faults()
    assert bash(steps(result)[0], sandbox, folder).code == (not kept) and len(sandbox.clusters) == kept


# ---- At most a screen, and only what is true ----

BAD = dict.fromkeys((f"{number}.jpg" for number in range(500)), b"no photo")
ODD = factory.tour(500, every={"photo.original_heading": "", "photo.connections": {}})


@pytest.mark.parametrize(("photos", "state"), [(BAD, "rejected"), (ODD, "to upload")], ids=["rejected", "warned of"])
def test_500_photos_are_told_in_45_lines(
    sandbox: Sandbox, tmp_path: Path, photos: dict[str, bytes], state: str
) -> None:
    folder = factory.write_tour(tmp_path / "tour", photos)
    result = upload(folder, sandbox, "--dry-run")
    lines = (result.err + result.out).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) < 1000 and f"{folder}: 500 photos: 500 {state}" in lines[-12:]
    assert "500 ×" in result.out and "… 490 more (--json lists all)" in result.out and "… 497 more" in result.err
    told = valid(upload(folder, sandbox, "--dry-run", "--json"))["photos"]
    assert sum(bool(photo["problems"] + photo["warnings"]) for photo in told) == 500
    assert all(name in upload(folder, sandbox, "--dry-run", "-v").err for name in list(photos)[::250])


def test_a_long_summary_ends_with_the_counts(sandbox: Sandbox, tmp_path: Path) -> None:
    for number in range(60):
        factory.write_tour(tmp_path / "t", factory.tour(1, latitude=40 + number / 10, names=f"{number}.jpg"))
        if number in (9, 10):
            lines = upload(tmp_path / "t", sandbox, "--dry-run").out.splitlines()
            assert sum(line.startswith("  sequence ") for line in lines) == 10
            more = [line for line in lines if line.startswith("  …")]
            assert more == ["  … 1 more sequence (--json lists all)"] * (number == 10)
    lines = upload(spoil(tmp_path / "t"), sandbox, "--dry-run").out.splitlines()
    assert len(lines) <= 20 and lines[0] == lines[-1] == f"{tmp_path / 't'}: 61 photos: 60 to upload, 1 rejected"
    assert "  … 50 more sequences (--json lists all)" in lines


def test_a_run_with_nothing_to_do_says_so(sandbox: Sandbox, folder: Path) -> None:
    arrange("copied", sandbox, folder)
    first = upload(folder, sandbox)
    assert ": 9 photos: 8 published, 1 copy\n" in first.out and "Done." in first.out
    second = upload(folder, sandbox, "--output", str(folder.parent / "out"))
    assert ": nothing new: 8 published before, not all seen live yet, 1 copy\n" in second.out
    assert "  0 photos written to " in second.out and "Done" not in second.out
    assert "8 of 8 published or sent are live" in upload(folder, sandbox, "--check").out
    for photo in folder.glob("*.jpg"):
        photo.unlink()
    last = upload(folder, sandbox)
    assert last.code == 0 and ": nothing new: 8 published before, all live\n" in last.out and steps(last) == []
    assert "Nothing to upload." in upload(folder, sandbox, "--dry-run").out


@pytest.mark.parametrize("option", ["--json", "--skip-invalid", "--dry-run"])
def test_where_nothing_passes_no_rest_is_spoken_of(sandbox: Sandbox, tmp_path: Path, option: str) -> None:
    result = upload(spoil(tmp_path / "tour"), sandbox, option)
    said = (result.out + result.err).replace(str(tmp_path), "")
    assert result.code == 3 and not re.search("others|the rest|Done|passes|skip-invalid|new", said)


def test_one_is_said_in_the_singular(sandbox: Sandbox, tmp_path: Path) -> None:
    tours(tmp_path, 1)
    texts = [upload(tmp_path, sandbox, "-r", *more) for more in (("--dry-run",), (), (), ("--check",))]
    said = "".join(result.out + result.err for result in texts)
    assert "1 folder, 1 photo: 1 published" in said and not re.search(r"\b1 (photo|sequence|folder|copie)s\b", said)


# ---- Many folders ----


def test_finished_folders_share_a_line(sandbox: Sandbox, tmp_path: Path) -> None:
    for count, more in ((50, ""), (51, "… 1 more folder (--json lists all)\n")):
        told = upload(tours(tmp_path, count), sandbox, "-r", "--dry-run").out
        assert told.count(": 1 photo: 1 to upload\n") == 50 and more in told and ("…" in told) is bool(more)
    tours(tmp_path, 60)
    runs: list[list[str]] = [[], [], ["--check"], ["--check"]]
    first, second, look, third = (upload(tmp_path, sandbox, "-r", *more) for more in runs)
    assert "… 10 more folders (--json lists all)\n60 folders, 60 photos: 60 published\n" in first.out
    assert first.out.count(": 1 photo: 1 published\n") == 50
    assert look.code == 0 and "60 of 60 published or sent are live" in look.out
    assert look.out.count(": 1 of 1 published or sent are live") == 50  # where a look finds something it is said
    for again in (second, third):
        assert "60 folders unchanged\n60 folders, " in again.out and len((again.out + again.err).splitlines()) <= 8
    one_more = upload(tours(tmp_path, 1, first=60), sandbox, "-r")
    assert len((one_more.out + one_more.err).splitlines()) <= 20
    assert one_more.out.startswith(f"{tmp_path / 'tour 60'}: 1 photo: 1 published\n")
    assert "\n60 folders unchanged\n61 folders, 61 photos: 61 published\n" in one_more.out


def test_each_line_about_one_of_many_folders_names_it(sandbox: Sandbox, tmp_path: Path) -> None:
    spoil(tours(tmp_path, 1) / "bad")
    spoken = [
        line for line in upload(tmp_path, sandbox, "-r", "-v").err.splitlines() if "photo" in line or "seq" in line
    ]
    assert len(spoken) > 2 and all(str(tmp_path) in line for line in spoken)
    assert f"\n  exit 3: {tmp_path / 'bad'}\n" in upload(tmp_path, sandbox, "-r").out
    result = upload(tmp_path, sandbox, "-r", "-q")
    assert result.code == 3 and result.out == "" and result.err.count("\n") == 1
    assert f" error: {tmp_path / 'bad'}: not a JPEG photo" in result.err


# ---- Words ----


def test_messages_are_in_the_users_words(sandbox: Sandbox, tmp_path: Path) -> None:
    whole = factory.json_bytes(factory.sequence_maker_json()).decode()
    texts = {"cut.jpg": whole[: len(whole) // 2], "list.jpg": "[]", "word.jpg": "a walk", "empty.jpg": ""}
    for key in ("original_latitude", "original_longitude", "original_GPSDateTime", "cli_connection_method", "id"):
        for number, value in enumerate(('""', "null", "NaN", "[1]")):
            texts[f"{key}{number}.jpg"] = re.sub(f'("{key}": )[^,]*', rf"\g<1>{value}", whole)
    photos = {name: factory.photo_bytes(text, picture=name) for name, text in texts.items()} | {"bad.jpg": b""}
    result = upload(factory.write_tour(tmp_path / "tour", photos), sandbox, "--skip-invalid")
    assert "cut.jpg (the JSON in its ImageDescription is cut off)" in result.out
    said = re.sub(r"\S+\.jpg", "", result.out + result.err)
    assert result.code == 3 and not re.search(r"cli_|original_|None|null|Error|dict|class|''|\{", said)


def test_an_outage_is_one_line_and_its_end_another(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault("POST /mly", status=503, times=None))
    watched = FastRun()
    assert upload_here(folder, sandbox, watched).code == 1
    loud = [(level, text.partition(";")[2]) for level, text in watched.messages if level in ("warning", "error")]
    ends = [" trying again for up to 10 min", " given up after 10 min. Run again to go on"]
    assert loud == list(zip(["warning", "error"], ends))
    told = upload(folder, sandbox, "--retries", "0", "--patience", "0")
    assert len((told.out + told.err).splitlines()) <= 12 and re.search("failed, . × POST /…: HTTP 503", told.out)


# ---- Terminals and logs ----


def on_terminal(
    columns: int, folder: Path, sandbox: Sandbox, *arguments: str, see: Callable[[str, int], None] = lambda *_: None
) -> str:
    """All that a terminal so wide shows; `see` is called with what there is so far, and with the terminal."""
    ours, theirs = pty.openpty()
    resize(theirs, columns)
    screen = b""
    with started(folder, sandbox, *arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a pseudo-terminal ends
            while block := os.read(ours, 4096):
                screen += block
                see(screen.decode(errors="replace"), ours)
        process.wait(timeout=60)
    os.close(ours)
    return screen.decode()


def resize(terminal: int, columns: int) -> None:
    """What a window does that is made wider or narrower."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def bars_of(screen: str) -> list[str]:
    """The progress lines of an upload as they stood on the screen."""
    return re.findall(r"\r([^\r\n\x1b]+left)\x1b\[K", screen)


@pytest.mark.parametrize(("columns", "widest"), [(40, 5), (80, 10), (200, 80)])
def test_the_progress_bar_fills_the_terminal(sandbox: Sandbox, folder: Path, columns: int, widest: int) -> None:
    sandbox.faults.append(Fault("POST /mly.*jpg", after=3, status=400, times=None))
    assert upload(folder, sandbox, "--workers", "1", "-q").code == 1  # three have arrived
    sandbox.clear_faults()
    sandbox.delay = 0.15
    bars = bars_of(on_terminal(columns, folder, sandbox, "--workers", "1"))
    assert {len(bar) for bar in bars} == {columns - 1} and len({bar.count("#") for bar in bars}) > 1
    for bar in bars:
        assert re.fullmatch(r"\[#* *\] [3-8]/8( photos)?(, 3 of 8 were there)?(, .* of .*)?, \S+ .B/s, \S+ left", bar)
        assert bar.index("]") > widest and ("were there" in bar) == (columns > 40)


def test_the_bar_is_gone_where_the_summary_begins(sandbox: Sandbox, tmp_path: Path) -> None:
    screen = on_terminal(80, factory.write_tour(tmp_path / "tour", factory.tour(500)), sandbox, "--dry-run")
    assert not re.search(r"\][^\r\n]*\x1b\[K[^\r]", screen) and "500 photos: 500 to upload" in screen


def test_the_progress_bar_follows_a_terminal_that_is_resized(sandbox: Sandbox, folder: Path) -> None:
    narrow = threading.Event()
    sandbox.faults.append(Fault(lambda request: request.path == "/finish_upload" and not narrow.wait(60)))

    def see(screen: str, terminal: int) -> None:
        widths = [len(bar) for bar in bars_of(screen)]
        if 119 in widths:
            resize(terminal, 60)
        if widths[-1:] == [59]:
            narrow.set()

    assert len(bars_of(on_terminal(120, folder, sandbox, see=see))[-1]) == 59


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colour_follows_no_color(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    screen = on_terminal(80, spoil(folder), sandbox)
    assert ("\x1b[31merror: not a JPEG photo" in screen) == (not no_color) and "error: not a JPEG photo" in screen


def test_a_log_has_dated_lines_and_no_control_characters(sandbox: Sandbox, folder: Path) -> None:
    result = upload(spoil(folder), sandbox, "--skip-invalid", "-v")
    assert all(re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in result.err.splitlines())
    assert not CONTROL.search(result.err + result.out) and "published sequence" in result.err


def test_a_log_gets_a_progress_line_in_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    console, clock = mu.Console(), FastClock()
    console.clock = clock
    console.lowest = "info"
    for second in range(100):
        clock.ahead += 1
        console.progress(mu.Progress("upload", second, 100, 1_000_000 * second, 100_000_000, 20, second))
    lines = [line.partition("Z ")[2] for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 3 and lines[0].startswith("49/120 photos, 20 of 120 were there, 29.0 MB of 100.0 MB, 1.0 MB/s")


def test_quiet_is_silent_when_all_is_well(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox, "--quiet") == Ran(0, "", "")


def test_verbose_shows_what_each_photo_is_sent_with(sandbox: Sandbox, folder: Path) -> None:
    said = dict(re.findall(r"Z (\S+\.jpg): (\{.*\})", upload(folder, sandbox, "--dry-run", "-v").err))
    sent = {photo.file: mu.description_of(photo) for photo in mu.check_folder(folder).photos}
    assert {name: json.loads(text) for name, text in said.items()} == sent
    assert "MAPLatitude" not in upload(folder, sandbox, "--dry-run").err


@pytest.mark.parametrize(("name", "begins"), [("tour.html", "<"), ("tour.GeoJSON", "{")])
def test_what_was_written_is_said(sandbox: Sandbox, folder: Path, tmp_path: Path, name: str, begins: str) -> None:
    words = ["--map", str(tmp_path / name), "--output", str(tmp_path / "out")]
    for more in (["--dry-run"], []):
        lines = upload(folder, sandbox, *words, *more).out.splitlines()
        assert f"  8 photos written to {tmp_path / 'out'}" in lines and f"  map written to {tmp_path / name}" in lines
    assert (tmp_path / name).read_text().startswith(begins)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {photo.name for photo in sandbox.published}
    assert upload(tmp_path, sandbox, "-r", *words[:2]).out.count(f"\n  map written to {tmp_path / name}\n") == 1


@pytest.mark.parametrize("many", [[], ["-r"]])
def test_a_map_that_cannot_be_written_stops_nothing(sandbox: Sandbox, folder: Path, many: list[str]) -> None:
    words = ["--map", str(folder / "no" / "map"), *many]
    result = upload(folder, sandbox, *words)
    assert result.code == 2 and "map written" not in result.out and len(sandbox.published) == 8
    document = valid(upload(folder, sandbox, *words, "--json"))
    last = document["folders"][-1] if many else document
    assert document["exit_code"] == 2 and "can't be written" in last["error"]


# ---- Exit codes and the JSON document ----

WRONG = """
--nosuch                                     | No such option
-u demo                                      | the folder of photos is missing
-d tour                                      | the account is missing
-d missing -u demo                           | no such folder: missing
-d tour/GS0001_calculated.jpg -u demo        | tour/GS0001_calculated.jpg is a file
-d empty -u demo                             | no photo in empty
-d tour -u demo -o 2002a                     | 2002a is no number
-d tour -u demo -o 99                        | no organization 99
-d tour -u demo --republish nosuch           | sequence nosuch is not here
-d tour -u demo --output other               | other/GS0003_calculated.jpg exists with other content
-d tour -u demo --output tour/below          | lies in the folder
-d tour -u demo --output empty/../tour       | lies in the folder
-d tour -u demo -q -v                        | contradict
-d tour -u demo --check --dry-run            | contradict
-d tour -u demo --check --republish x        | contradict
-d tour -u demo --check --output out         | contradict
-d tour -u demo --min-age nan                | --min-age
-d tour -u demo --min-age -1                 | --min-age
-d tour -u demo --patience nan               | --patience
-d tour -u demo --workers 0                  | --workers
-d tour -u demo --workers 33                 | --workers
-d tour -u demo --workers 1.5                | --workers
-d tour -u demo --retries 21                 | --retries
-d tour -u demo --retries -1                 | --retries
-d tour -u demo --utc-offset 2               | --utc-offset
-d tour -u demo --utc-offset +14:01          | --utc-offset
"""


@pytest.mark.parametrize("line", WRONG.strip().splitlines())
def test_wrong_usage_is_said_in_a_line_and_exits_2(sandbox: Sandbox, folder: Path, tmp_path: Path, line: str) -> None:
    words, says = re.split(r" +\| ", line)
    (tmp_path / "empty").mkdir()
    factory.write_tour(tmp_path / "other", {"GS0003_calculated.jpg": b"precious"})
    result = run("--json", *words.split(), cwd=tmp_path, env=environment(sandbox))
    document = valid(result)
    assert result.code == 2 and says in document["error"] and re.search(r"\S\. [A-Z-]", document["error"])  # what to do
    assert document["directory"] in (None, *words.split()[1:2])
    assert re.fullmatch(r"(\S+Z (account demo|checking) .*\n)*\S+Z error: .*\n", result.err)
    assert (tmp_path / "other" / "GS0003_calculated.jpg").read_bytes() == b"precious"
    assert {request.path for request in sandbox.requests} <= {"/me", "/99"}


@pytest.mark.parametrize("words", ["--nosuch", "-d missing -u demo"])
def test_usage_errors_of_many_folders_have_their_document_too(tmp_path: Path, words: str) -> None:
    document = valid(run("-r", "--json", *words.split(), cwd=tmp_path))
    assert document["exit_code"] == 2 and len(document["folders"]) == 1


ENDS = {  # exit code, states of photos, of sequences
    "published": (0, {"published"}, "published"),
    "dry": (0, {"ready"}, "ready"),
    "published before": (0, {"published"}, "published"),
    "live": (0, {"published"}, "published"),
    "not live": (1, {"published"}, "published"),
    "overdue": (6, {"published"}, "published"),
    "rejected": (3, {"ready", "rejected"}, "ready"),
    "left out": (3, {"published", "rejected"}, "published"),
    "copied": (0, {"copy", "published"}, "published"),
    "held": (3, {"held"}, "held"),
    "unconfirmed": (1, {"uploaded"}, "unconfirmed"),
    "failed": (1, {"failed"}, "uploading"),
    "young": (1, {"ready"}, "ready"),
    "refused": (4, {"ready"}, "uploading"),
    "damaged": (2, set(), None),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_its_exit_code_and_document(sandbox: Sandbox, folder: Path, end: str) -> None:
    code, states, state = ENDS[end]
    spoil(folder, "notes.txt")
    document = valid(upload(folder, sandbox, *arrange(end, sandbox, folder), "--json"))
    facts = [document[key] for key in ("exit_code", "directory", "username", "dry_run", "skipped")]
    assert facts == [code, str(folder), "demo", end == "dry", ["notes.txt"] if state else []]
    assert {photo["state"] for photo in document["photos"]} == states and len(document["sequences"]) == bool(state)
    for photo in document["photos"]:
        assert bool(photo["problems"]) == (photo["state"] in ("rejected", "failed"))
        assert bool(photo["image_id"]) == (end == "live")
    for sequence in document["sequences"]:
        assert (sequence["state"], sequence["photos"], sequence["live"]) == (state, 8, 8 * (end == "live"))
        assert bool(sequence["problems"]) == (state == "held") and sequence["overdue"] == (code == 6)
        assert bool(sequence["cluster_id"] and sequence["published_at"]) == (state == "published")


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("demo", "", "no token for demo"),
        ("demo", "wrong", "Sign in again with --login"),
        ("x", None, "belongs to demo"),
    ],
)
def test_sign_in_that_fails_exits_4(sandbox: Sandbox, folder: Path, name: str, token: str | None, says: str) -> None:
    env = environment(sandbox) if token is None else environment(sandbox, MAPILLARY_ACCESS_TOKEN=token)
    document = valid(run("-d", folder, "-u", name, "--json", env=env))
    assert document["exit_code"] == 4 and says in document["error"] and not sandbox.posts()
    assert not (folder / "mapillary_uploader.json").exists()


def test_of_several_codes_the_first_in_order_counts(sandbox: Sandbox, tmp_path: Path) -> None:
    def code(*arguments: str) -> int:
        return int(valid(upload(tmp_path, sandbox, "-r", "--json", *arguments))["exit_code"])

    def added(end: str, number: int) -> Path:
        folder = tours(tmp_path, 1, first=number) / f"tour {number}"
        arrange(end, sandbox, folder)
        return folder

    added("published before", 0)
    assert code() == 0
    added("rejected", 1)
    assert code() == 3
    added("unconfirmed", 2)
    assert code() == 1
    sandbox.clear_faults()
    added("overdue", 3)
    assert code("--check") == 6 and code() == 1
    added("refused", 4)
    assert code() == 4
    added("damaged", 0)
    assert code() == code("--check") == 2
    sandbox.clear_faults()
    with mu.locked(folder := tmp_path / "tour 2"):
        assert code() == 5
        alone = valid(upload(folder, sandbox, "--json"))
        assert alone["exit_code"] == 5 and "another run is at work on" in alone["error"]


@pytest.mark.parametrize("at", ["GET /me", "GET /images", "POST /mly", "POST /finish_upload"])
@pytest.mark.parametrize(("number", "code", "option"), [(signal.SIGINT, 130, "-v"), (signal.SIGTERM, 143, "--json")])
def test_a_stopped_run_says_so_once(
    sandbox: Sandbox, folder: Path, at: str, number: int, code: int, option: str
) -> None:
    sandbox.faults.append(fault := Fault(at, hang=600, times=None))
    with started(folder, sandbox, option) as process:
        wait_until(lambda: fault.seen)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code and err.count("error: stopped") == 1 and "Traceback" not in err
    if option == "--json":
        document = valid(Ran(code, out, err))
        assert document["error"].startswith("stopped") and len(document["photos"]) == 8 * (at != "GET /me")
    else:
        assert "stopped. " not in out and "To go on" not in out


# ---- Whatever the machine is like ----


def opened(end: str) -> int:
    """A stream that takes nothing: a full disk, or a pipe that nobody reads."""
    if end == "full":
        return os.open("/dev/full", os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["full", "unread", "closed"])
@pytest.mark.parametrize("option", ["", "--json"])
def test_only_a_document_that_is_lost_changes_the_exit_code(
    sandbox: Sandbox, folder: Path, stream: str, end: str, option: str
) -> None:
    closing = {"stdout": " >&-", "stderr": " 2>&-"}[stream] if end == "closed" else ""
    command = f"{STARTED} -d '{folder}' -u demo {option} {closing}"
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: opened(end)}
    done = subprocess.run(["bash", "-c", command], env=environment(sandbox), text=True, **streams)
    os.close(streams[stream])
    lost = bool(option) and stream == "stdout"
    assert done.returncode == lost and len(sandbox.published) == 8 and "Traceback" not in str(done.stderr)
    assert ("error: the document can't be written: " in str(done.stderr)) == lost


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_cannot_be_printed_do_no_harm(sandbox: Sandbox, tmp_path: Path, encoding: str) -> None:
    names = ["Zürich_写真.jpg", os.fsdecode(b"bad\xff.jpg"), "new\nline.jpg", "esc\x1b[31m.jpg"]
    folder = spoil(factory.write_tour(tmp_path / "tour", factory.tour(4, names=names)), "é.txt")
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    result = upload(folder, sandbox, "-v", "--json", "--output", str(tmp_path / "out"), env=settings)
    assert {photo["file"] for photo in valid(result)["photos"]} == set(names) == set(os.listdir(tmp_path / "out"))
    again = upload(folder, sandbox, env=settings)
    assert result.code == again.code == 0 and "nothing new: 4 published before" in again.out
    assert not CONTROL.search(result.err + again.err + again.out)
    assert {photo.name for photo in sandbox.published} == {name.replace("\udcff", "\ufffd") for name in names}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/St_Johns"])
def test_this_machines_zone_changes_nothing(sandbox: Sandbox, folder: Path, zone: str) -> None:
    result = run("-d", ".", "-u", "demo", "--json", cwd=folder, env=environment(sandbox, TZ=zone))
    assert valid(result)["photos"][0]["description"]["MAPCaptureTime"] == "2021_07_29_09_16_54_000"
    assert sandbox.published[0].description["MAPCaptureTime"] == "2021_07_29_09_16_54_000"


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "PACKAGE":
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("package", ["click", "requests", "PIL", "piexif"])
def test_a_package_that_is_missing_is_named_in_a_line(sandbox: Sandbox, tmp_path: Path, package: str) -> None:
    whole = factory.sequence_maker_json({"photo.original_heading": 123.456, "sequence.id": "s"})
    keys = (
        "original_GPSDateTime",
        "cli_connection_method",
        "original_latitude",
        "original_longitude",
        "original_heading",
    )
    short = {"photo": {key: whole["photo"][key] for key in keys}, "sequence": {"id": "s"}}  # piexif must make room
    photo = factory.photo_bytes(json.dumps(short, separators=(",", ":")))
    folder = factory.write_tour(tmp_path / "tour", {"A_calculated.jpg": photo})
    (tmp_path / "sitecustomize.py").write_text(HIDE.replace("PACKAGE", package))
    result = upload(folder, sandbox, env={"PYTHONPATH": str(tmp_path)})
    says = (
        f"error: the package {package.replace('PIL', 'Pillow')} is not installed[:.] pip install -r requirements.txt\n"
    )
    assert result.code == 2 and re.search(says, result.err) and "Traceback" not in result.err and not sandbox.published


def test_an_unexpected_error_shows_no_traceback(folder: Path) -> None:
    words = ["-d", str(folder), "--dry-run", "--json", "-v"]
    code = f"import os, mapillary_uploader as m; os.listdir = lambda _: 1 / 0; raise SystemExit(m.cli({words}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    document = valid(Ran(done.returncode, done.stdout, done.stderr))
    assert done.returncode == 1 and "unexpected ZeroDivisionError at line " in document["error"]
    assert "Traceback" not in done.stderr and "please report it" in done.stderr
