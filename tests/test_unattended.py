"""README "Unattended": -r over many folders, folders that are still being copied, busy ones, cron and many boxes."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import zlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faults import FINISH, IMAGES, NO, PHOTO, keys_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import (
    NEVER,
    PROGRAM,
    ROOT,
    FastRun,
    Files,
    Later,
    account,
    environment,
    run,
    service_of,
    sizes,
    upload,
    upload_here,
    without_override,
)

README = (ROOT / "README.md").read_text(encoding="utf-8")


def walk(count: int, name: str = "walk", **options: Any) -> Files:
    """Photos that miss no other, in a sequence of that name, with a time and a place of its own."""
    number = zlib.crc32(name.encode())
    start = factory.format_time(datetime(2021, 1, 1) + timedelta(minutes=number % 500_000)) + "Z"
    own: dict[str, Any] = {"start": start, "latitude": number / 2**27, "names": name + " {}.jpg", "sequence_id": name}
    return factory.tour(count, **own | {"every": {"photo.connections": {}}} | options)


def tree(root: Path, *names: str) -> Path:
    """Folders with a photo each, sequences of their own."""
    for name in names:
        factory.write_tour(root / name, walk(1, re.sub(r"\W", "_", name)))
    return root


def all_below(root: Path, sandbox: Sandbox, **settings: Any) -> list[mu.Result]:
    """What -r does, from Python."""
    tours = mu.check_folders(root, mu.Settings(**settings))
    return [mu.publish(tour, account(sandbox), service_of(sandbox), FastRun()) for tour in tours]


# ---- which folders ----


PASSED_OVER = [".hidden", "@eaDir", "#recycle", "#snapshot", "~snapshot", "$RECYCLE.BIN", "RECYCLER"]
PASSED_OVER += ["System Volume Information", "lost+found", "Network Trash Folder", "kept out"]


def test_every_folder_below_is_looked_into_once_links_too_but_what_v_names(sandbox: Sandbox, tmp_path: Path) -> None:
    names = [".", "a", "a/b/c", "@Lake Garda", "#1", "~2", "lost+found 2026", "3 $RECYCLE.BIN"]
    root = tree(tmp_path / "root", *names, *PASSED_OVER, "kept out/below")
    (root / "kept out" / "mapillary_uploader.skip").touch()
    tree(tmp_path, "elsewhere")
    links = {"link": "../elsewhere", "link again": "../elsewhere", "loop": ".", "a/up": ".."}
    links |= {"itself": "itself", "dangling": "nowhere", "notes.txt": os.fspath(PROGRAM)}
    for link, target in links.items():
        (root / link).symlink_to(target)
    result = upload(root, sandbox, "-r", "-v", "--json")
    folders = [os.path.relpath(folder["directory"], root) for folder in result.document["folders"]]
    assert result.code == 0 and sorted(folders) == sorted([*names, "link"])
    assert [name for name in PASSED_OVER if f"passed over: {root / name}\n" not in result.err] == []
    assert len(sandbox.published) == 9 and sandbox.published_twice == []


@pytest.mark.parametrize("link", ["x" * 300, "secret/below"], ids=["a name too long", "no access"])
def test_a_folder_that_cannot_be_read_is_reported(sandbox: Sandbox, tmp_path: Path, link: str) -> None:
    root = tree(tmp_path / "root", "a", "secret", "secret/below", "z")
    (root / "dead").symlink_to(link)
    (root / "secret").chmod(0)
    result = run("-r", "-d", root, "-u", "demo", env=environment(sandbox), preexec_fn=without_override)
    assert result.code == 2 and len(sandbox.published) == 2
    for name in ("dead", "secret"):
        assert f"{root / name} can't be read: " in result.err and f"exit 2: {root / name}" in result.out
        assert sum(str(root / name) in line for line in result.err.splitlines()) == 1
    (root / "secret").chmod(0o755)


def test_what_cannot_be_looked_at_is_rejected_as_a_photo_else_named(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tree(tmp_path, "tour") / "tour"
    for name in ("dead", "dead.mp4"):
        (folder / name).symlink_to("x" * 300)
    result = upload(folder, sandbox, "--json")
    assert result.code == 0 and result.document["skipped"] == ["dead", "dead.mp4"]
    (folder / "dead.jpg").symlink_to("x" * 300)
    photo = next(photo for photo in upload_here(folder, sandbox).photos if photo.file == "dead.jpg")
    assert photo.state == "rejected" and "File name too long" in str(photo.problems[0])


def test_without_r_the_folders_below_are_named(sandbox: Sandbox, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "tour 1", "tour 2", "@eaDir")
    (root / "empty").mkdir()
    result = upload(root, sandbox)
    assert result.code == 2 and "no photo" in result.err and "-r looks into the folders below" in result.err
    assert upload(root / "empty", sandbox, "-r").code == 2
    factory.write_tour(root, walk(1, "stray"))
    result = upload(root, sandbox)
    line = next(line for line in result.out.splitlines() if "-r" in line and "tour 1/" in line)
    assert result.code == 0 and "tour 2/" in line and "empty" not in line and len(sandbox.published) == 1


# ---- one photo in two folders ----


class Kind(NamedTuple):
    """What tells a photo from its copies and other versions."""

    photo_id: str
    shot: str
    picture: str

    @classmethod
    def of(cls, uuid: str) -> Kind:
        return cls(*uuid.partition("_")[0].split("-"))


KINDS = [Kind(*kind) for kind in itertools.product(("", "a", "b"), ("one", "two"), ("raw", "blurred"))]


def of_kind(kind: Kind) -> bytes:
    """A photo of a sequence of its own."""
    every = {"photo.connections": {}, "photo.id": kind.photo_id, "sequence.id": "-".join(kind)}
    return walk(1, kind.shot, picture=kind.picture, every=every).popitem()[1]


def twins(one: Kind, other: Kind) -> bool:
    return one.picture == other.picture and (one.photo_id == other.photo_id != "" or one.shot == other.shot)


def versions(one: Kind, other: Kind) -> bool:
    return one.picture != other.picture and one.photo_id == other.photo_id != ""


EDITS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("1234"), st.sampled_from([None, *KINDS])), min_size=1, max_size=5
)
FAULTS = st.sampled_from([
    {"match": "nothing"}, {"match": FINISH, "lost": True}, {"match": FINISH, "status": 400, "body": NO},
    {"match": FINISH, "status": 503}, {"match": PHOTO, "status": 400}, {"match": IMAGES, "status": 400},
])  # fmt: skip
DAYS = st.lists(st.tuples(EDITS, FAULTS), min_size=1, max_size=3)


def day(**kinds: int) -> tuple[list[Any], dict[str, str]]:
    """What stands at a path from then on: a1=3, the fourth of KINDS at a/1.jpg."""
    return [(path[0], path[1], KINDS[number]) for path, number in kinds.items()], {"match": "nothing"}


@settings(max_examples=100)
@example([day(a1=3, a2=0), day(a1=0)])
@example([day(b1=1), day(b1=5), day(a2=4)])
@example([day(a1=9), day(b1=5, b2=4)])
@given(DAYS)
def test_however_folders_are_edited_no_photo_goes_out_twice_or_is_lost(days: list[Any]) -> None:
    """Of each day's edits a path takes what stands there then, or nothing: so photos move, change, and have copies."""
    with Sandbox(live_after=NEVER) as sandbox, tempfile.TemporaryDirectory() as place:
        files, before = dict[Path, Kind](), 0
        for edits, fault in days:
            sandbox.faults = [Fault(**fault)]
            for folder, name, kind in edits:
                path = Path(place, folder, f"{name}.jpg")
                files.pop(path, None)
                path.unlink(missing_ok=True)
                if kind:
                    files[path] = kind
                    factory.write_tour(path.parent, {path.name: of_kind(kind)})
            results = all_below(Path(place), sandbox) if files else []
            out = [Kind.of(photo.description["MAPSequenceUUID"]) for photo in sandbox.published]
            assert not [pair for pair in itertools.combinations(out, 2) if twins(*pair) or versions(*pair)]
            assert not [pair for pair in itertools.product(out[before:], files.values()) if versions(*pair)]
            before = len(out)
            out += [Kind.of(s.uuid) for one in results for s in one.sequences if s.state == "unconfirmed"]
            for photo, path in [(photo, one.folder / photo.file) for one in results for photo in one.photos]:
                known = [kind for kind in out if twins(kind, files[path]) or versions(kind, files[path])]
                known += [kind for kind in out if kind.picture == files[path].picture]
                copied = [other for other in files if other != path and twins(files[other], files[path])]
                assert {"published": known, "copy": known + copied}.get(photo.state, [path])
            for result in results:
                assert result.code or {photo.state for photo in result.photos} <= {"published", "copy"}


@pytest.mark.parametrize("names", [("a", "a/copies"), ("a", "b"), ("2", "10")])
def test_of_copies_in_two_folders_the_first_is_sent(sandbox: Sandbox, tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        factory.write_tour(tmp_path / name, walk(3))
    for _ in range(2):
        result = upload(tmp_path, sandbox, "-r", "--json")
        states = [[photo["state"] for photo in folder["photos"]] for folder in result.document["folders"]]
        assert result.code == 0 and states[0] == ["published"] * 3 and states[1][0] in ("copy", "published")
        assert len(sandbox.clusters) == 1 and len(sandbox.published) == 3
    assert not (tmp_path / names[1] / "mapillary_uploader.json").exists()


@pytest.mark.parametrize("first", ["", "raw", "blurred"])
@pytest.mark.parametrize("names", [*itertools.permutations("abc")])
def test_versions_in_several_folders_are_held_back_all_but_what_is_published(
    sandbox: Sandbox, tmp_path: Path, names: tuple[str, str, str], first: str
) -> None:
    versions = {"raw": walk(2), "unblurred": walk(2), "blurred": walk(2, picture="blurred")}
    places = {version: tmp_path / name for version, name in zip(versions, names)}
    for version in [first] * bool(first):
        factory.write_tour(places[version], versions[version])
        assert upload_here(places[version], sandbox).code == 0
    for version, photos in versions.items():
        factory.write_tour(places[version], photos)
    codes = {result.folder: result.code for result in all_below(tmp_path, sandbox, skip_invalid=True)}
    assert len(sandbox.published) == 2 * bool(first) and max(codes.values()) == 3
    assert codes[places["blurred"]] == (0 if first == "blurred" else 3)


@pytest.mark.parametrize("lost", [False, True], ids=["published", "unconfirmed"])
@pytest.mark.parametrize("archive", ["archive/2026", "zzz", "below/moved with its resume file"])
def test_what_was_moved_to_an_archive_is_not_sent_again(
    sandbox: Sandbox, tmp_path: Path, archive: str, lost: bool
) -> None:
    sandbox.live_after = NEVER
    sandbox.faults += [Fault(FINISH, lost=True)] * lost
    drop = factory.write_tour(tmp_path / "drop", walk(3))
    assert upload_here(drop, sandbox).code == int(lost)
    (tmp_path / archive).mkdir(parents=True)
    for path in drop.iterdir():
        if path.suffix == ".jpg" or "moved" in archive:
            path.rename(tmp_path / archive / path.name)
    new = walk(2, "next") if archive == "zzz" else {}  # else the drop folder stays empty
    factory.write_tour(drop, new)
    for code in (upload(tmp_path, sandbox, "-r").code, max(result.code for result in all_below(tmp_path, sandbox))):
        assert code == int(lost) and sizes(sandbox) == [3, 2][: 1 + bool(new)]


@pytest.mark.parametrize("first", ["published", "unconfirmed"])
def test_republish_finds_a_sequence_that_is_published_in_another_folder(
    sandbox: Sandbox, tmp_path: Path, first: str
) -> None:
    every = {"photo.connections": {}, "sequence.id": "walk"}
    for name, photos in (("a", walk(1, "one", every=every)), ("b", walk(1, "two", every=every))):
        factory.write_tour(tmp_path / name, photos)
    sandbox.faults.append(Fault(FINISH, status=503, after=int(first == "published")))
    assert upload(tmp_path, sandbox, "-r").code == 1 and sizes(sandbox) == [1]
    assert upload(tmp_path, sandbox, "-r", "--republish", "walk").code == 0 and sizes(sandbox) == [1, 1]
    assert upload(tmp_path, sandbox, "-r", "--republish", "walk").code == 2


# ---- folders that are still being copied ----


@pytest.mark.parametrize("mtime", [0, 1_700_000_000, 4_000_000_000], ids=["1970", "copied with it", "in the future"])
def test_min_age_counts_from_when_the_file_came(sandbox: Sandbox, tmp_path: Path, mtime: int) -> None:
    folder = factory.write_tour(tmp_path / "tour", walk(3))
    for path in folder.glob("*.jpg"):
        os.utime(path, (mtime, mtime))
    result = upload(folder, sandbox, "--min-age", "600")
    assert result.code == 1 and "may still be being copied" in result.err and sandbox.posts() == []
    assert upload_here(folder, sandbox, Later(601 / 3600), min_age=600).code == 0 and len(sandbox.published) == 3


def test_min_age_looks_at_the_youngest_photo_and_not_at_published_ones(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "tour", walk(3))
    youngest = sorted(folder.glob("*.jpg"))[1]
    os.utime(youngest, (youngest.stat().st_ctime + 900,) * 2)
    result = upload_here(folder, sandbox, Later(1000 / 3600), min_age=600)
    assert result.code == 1 and youngest.name in str(result.errors[0]) and sandbox.posts() == []
    assert upload_here(folder, sandbox, Later(1000 / 3600), min_age=90).code == 0
    os.utime(youngest)
    assert upload(folder, sandbox, "--min-age", "600").code == 0


HALF: dict[str, Any] = {"every": None}  # each is connected to those beside it


@pytest.mark.parametrize(
    ("seconds", "min_age", "code"),
    [(0, None, 1), (590, None, 1), (610, None, 0), (0, 0, 0), (0, 300, 1), (310, 300, 0)],
)
def test_a_folder_in_which_connected_photos_are_missing_is_given_ten_minutes(
    sandbox: Sandbox, tmp_path: Path, seconds: float, min_age: float | None, code: int
) -> None:
    photos = walk(6, **HALF)
    folder = factory.write_tour(tmp_path / "tour", dict([*photos.items()][:3]))
    result = upload_here(folder, sandbox, Later(seconds / 3600), min_age=min_age)
    assert result.code == code and len(sandbox.published) == (0 if code else 3)
    assert any("connected to a photo that isn't here" in str(w) for photo in result.photos for w in photo.warnings)
    factory.write_tour(folder, photos)
    assert upload_here(folder, sandbox).code == 0 and len(sandbox.published) == 6
    assert len(sandbox.clusters) == (1 if code else 2)


def test_a_neighbour_that_is_rejected_or_archived_is_not_missing(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = factory.write_tour(tmp_path / "tour", walk(3, **HALF))
    assert upload_here(folder, sandbox).code == 0
    for path in folder.glob("*.jpg"):
        path.unlink()
    factory.write_tour(folder, dict([*walk(5, **HALF).items()][3:]))
    (folder / "walk 5.jpg").write_bytes((folder / "walk 5.jpg").read_bytes()[:-2])
    result = upload_here(folder, sandbox, skip_invalid=True)
    assert result.code == 3 and len(sandbox.published) == 4
    assert "connected to a photo that is rejected" in str(result.photos[0].warnings[0])


@pytest.mark.parametrize("moment", ["GET /images", "published sequence"])
def test_a_photo_that_comes_in_makes_the_run_unfinished(sandbox: Sandbox, tmp_path: Path, moment: str) -> None:
    folder = factory.write_tour(tmp_path / "tour", walk(3))

    class Arriving(FastRun):
        def message(self, level: str, text: str) -> None:
            if moment in text:
                factory.write_tour(folder, {name: data for name, data in walk(4).items() if "4" in name})

    result = upload_here(folder, sandbox, Arriving())
    assert result.code == 1 and "1 photo came in while the run was at work" in str(result.errors[-1])
    assert upload_here(folder, sandbox).code == 0 and sizes(sandbox) == [3, 1]


# ---- many folders ----


def test_a_busy_folder_exits_5_at_once_sends_nothing_and_stops_no_other(sandbox: Sandbox, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "busy", "damaged", "done")
    (root / "busy" / "bad.jpg").touch()
    (root / "damaged" / "mapillary_uploader.json").write_text("{")
    with mu.locked(root / "busy"):
        alone, result = upload(root / "busy", sandbox, "--json"), upload(root, sandbox, "-r")
    assert alone.code == alone.document["exit_code"] == result.code == 5
    assert "another run is at work" in alone.err and "bad.jpg" not in alone.err
    assert f"{root / 'busy'}: another run is at work" in result.err
    assert {*re.findall(r"exit (\d): ", result.out)} == {*"25"}
    assert [photo.name for photo in sandbox.published] == ["done 1.jpg"] and len(sandbox.posts("jpg")) == 1


def test_a_token_that_is_refused_ends_the_run_and_folders_not_reached_are_told(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    root = tree(tmp_path / "root", "a", "b", "c", "d")
    sandbox.faults.append(Fault(PHOTO, after=1, status=401, times=None))
    result = upload(root, sandbox, "-r")
    assert result.code == 4 and "4 folders, 4 photos: 1 published, 3 to upload" in result.out
    assert [f"  exit 1: {root / name}: not reached" in result.out for name in "abcd"] == [False, False, True, True]
    assert len(sandbox.posts("jpg")) == 2 and len(sandbox.clusters) == 1
    (damaged := root / "d" / "mapillary_uploader.json").write_text("{")
    result = upload(root, sandbox, "-r", "--json")
    told = {Path(folder["directory"]).name: folder for folder in result.document["folders"]}
    codes = {name: folder["exit_code"] for name, folder in told.items()}
    assert result.code == 2 and codes == {"a": 0, "b": 4, "c": 1, "d": 2} and not told["c"]["dry_run"]
    assert "not reached" in told["c"]["error"] and "damaged" in told["d"]["error"] and "damaged" in result.err
    sandbox.clear_faults()
    damaged.unlink()
    assert upload(root, sandbox, "-r").code == 0 and len(sandbox.clusters) == 4


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def test_300_folders_need_no_256_descriptors(sandbox: Sandbox, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", *(f"tour {number}" for number in range(300)))
    assert run("-r", "-d", root, "-u", "demo", env=environment(sandbox), preexec_fn=few_descriptors).code == 0
    assert len(sandbox.clusters) == 300


# ---- the README's lines ----


def test_the_crontab_and_the_systemd_unit_leave_for_a_person_what_needs_one() -> None:
    cron = re.findall(r"^(?:[\d*/,-]+ ){4}\S+ .*mapillary_uploader\.py .*", README, re.M)
    assert [("--min-age" in line, "--check" in line, "%" in line) for line in cron] == [
        (1, 0, 0),
        (0, 1, 0),
    ]  # % ends it
    assert re.search(r"^ExecStart=.*mapillary_uploader\.py .*--min-age", README, re.M)
    (successes,) = re.findall(r"^SuccessExitStatus=(.*)$", README, re.M)
    assert {*successes.split()} <= {"1", "3", "5"}


@pytest.mark.skipif(not shutil.which("parallel"), reason="GNU parallel is not installed")
def test_the_recipe_for_many_boxes_publishes_everything_once(sandbox: Sandbox, tmp_path: Path) -> None:
    """Two processes over a tree of tours: one is busy, one has a rejected photo, one is refused at first."""
    (recipe,) = re.findall(r"^```bash\n((?:(?!```).)*--joblog.*?)^```$", README, re.M | re.S)
    tours = tree(tmp_path / "tours", "busy", "rejected", "refused", "it's a tour", "x/$HOME", *"abc")
    (tours / "rejected" / "bad.jpg").touch()
    sandbox.faults.append(Fault(keys_of(tours / "refused").popitem()[1], status=400))
    setup, first, second = re.split(r"(?m)^(?=tours\b(?!\())", recipe)
    box = {".venv/bin/python mapillary_uploader.py": f"{sys.executable} {PROGRAM}", "-u NAME": "-u demo"}
    box |= {"/srv/uploader": str(tmp_path), "/srv/tours": str(tours), ":,box2,box3": ":"}

    def call(command: str) -> tuple[int, list[int]]:
        script = setup + command
        for shown, here in box.items():
            assert shown in script
            script = script.replace(shown, here)
        before = len(sandbox.requests)
        done = subprocess.run(["bash", "-c", script], env=environment(sandbox), capture_output=True, text=True)
        log = [line.split("\t") for line in (tmp_path / "tours.log").read_text().splitlines()[1:]]
        assert sandbox.max_in_flight <= 4, done.stderr
        runs = [request.path for request in sandbox.requests[before:]].count("/me")
        return done.returncode, sorted(int(row[6]) for row in log[-runs:])

    with mu.locked(tours / "busy"):
        assert call(first) == (3, [0, 0, 0, 0, 0, 1, 3, 5])
    assert call(second) == (1, [0, 0, 3])
    (tours / "rejected" / "bad.jpg").unlink()
    assert call(second) == (0, [0])
    assert len(sandbox.published) == 8 and sandbox.published_twice == []
    tree(tours, "new")
    assert call(first) == (0, [0] * 9) and len(sandbox.published) == 9 and sandbox.published_twice == []
