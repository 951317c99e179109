"""The command line: exit codes, JSON in every case, output for people and logs, the token nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import PROGRAM, FastClock, environment, run, upload

TOKEN = "MLY|sandbox|demo-token"
SCHEMA = json.loads((Path(__file__).parent / "result.schema.json").read_text())


def without_token(sandbox: Sandbox) -> dict[str, str]:
    """The sandbox's environment, but nobody has signed in."""
    return {name: value for name, value in environment(sandbox).items() if name != "MAPILLARY_ACCESS_TOKEN"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bad-option"],
        ["-d", "/no/such/folder", "-u", "x"],
        ["-u", "x"],
        ["-d", "."],
        ["-d", ".", "-u", "x", "-o", "abc"],
    ],
)
def test_wrong_usage_exits_2_with_one_json_document(arguments: list[str], tmp_path: Path) -> None:
    result = run("--json", *arguments, cwd=tmp_path)
    jsonschema.validate(result.document, SCHEMA)
    assert result.code == result.document["exit_code"] == 2 and result.document["error"]


def test_an_empty_folder_is_wrong_usage(tmp_path: Path) -> None:
    result = run("--json", "-d", tmp_path, "-u", "x")
    assert result.code == 2 and "no photo" in result.document["error"]


def test_the_current_folder_may_be_given(folder: Path) -> None:
    assert run("-d", ".", "--dry-run", cwd=folder).code == 0


def test_json_describes_each_photo(sandbox: Sandbox, folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_bytes(b"")
    result = upload(folder, sandbox, "--json", "--skip-invalid")
    jsonschema.validate(result.document, SCHEMA)
    states = [photo["state"] for photo in result.document["photos"]]
    assert result.code == 3 and states == ["published"] * 8 + ["rejected"] or states[0] == "rejected"
    assert result.document["skipped"] == ["notes.txt"]


def test_json_of_many_folders(sandbox: Sandbox, tmp_path: Path) -> None:
    factory.write_tour(tmp_path / "a", factory.tour(2))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bad.jpg").write_bytes(b"")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "thumb.jpg").write_bytes(b"")
    result = upload(tmp_path, sandbox, "--json", "-r")
    jsonschema.validate(result.document, SCHEMA)
    assert (result.code, [f["exit_code"] for f in result.document["folders"]]) == (3, [0, 3])
    assert "exit 3: " in upload(tmp_path, sandbox, "-r").out


def test_a_busy_folder_exits_5_at_once_and_sends_nothing(sandbox: Sandbox, folder: Path) -> None:
    with mu.locked(folder):
        result = upload(folder, sandbox, "--json")
    assert result.code == result.document["exit_code"] == 5 and sandbox.requests == []


def test_no_token_and_no_terminal_ends_with_what_to_do(sandbox: Sandbox, folder: Path) -> None:
    result = run("-d", folder, "-u", "demo", env=without_token(sandbox))
    assert result.code == 4 and "MAPILLARY_ACCESS_TOKEN" in result.err and sandbox.requests == []


@pytest.mark.parametrize("token", ["bad", "with space", "“curly”", "a\tb"])
def test_a_token_that_is_no_good_exits_4(sandbox: Sandbox, folder: Path, token: str) -> None:
    assert upload(folder, sandbox, env={"MAPILLARY_ACCESS_TOKEN": token}).code == 4


def test_another_accounts_token_exits_4(sandbox: Sandbox, folder: Path) -> None:
    result = run("-d", folder, "-u", "somebody", env=environment(sandbox))
    assert result.code == 4 and "belongs to demo" in result.err


@pytest.mark.parametrize(("organization", "code"), [("2002", 0), ("99", 2)])
def test_the_organization_is_checked_and_named_first(
    sandbox: Sandbox, folder: Path, organization: str, code: int
) -> None:
    result = upload(folder, sandbox, "-o", organization)
    assert result.code == code
    assert [cluster.organization_id for cluster in sandbox.clusters] == ([organization] if code == 0 else [])


def test_a_signed_in_profile_is_found_by_name_and_by_username(sandbox: Sandbox, folder: Path) -> None:
    env = environment(sandbox)
    assert run("--login", "-u", "work", env=env).code == 0
    del env["MAPILLARY_ACCESS_TOKEN"]
    files = list(Path(env["HOME"]).rglob("MLY_*"))
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] and files[
        0
    ].parent.stat().st_mode & 0o777 == 0o700
    assert run("-d", folder, "-u", "work", env=env).code == 0
    assert run("-d", folder, "-u", "demo", env=env).code == 0


def test_saving_a_profile_leaves_the_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("[other]\nuser_upload_token = 100%abc\nMAPOrganizationKey = 7\n")
    mu.save_profile(mu.Profile("mine", "t%oken", "me", "1"), path)
    config = mu.read_config(path)
    assert dict(config["other"]) == {"user_upload_token": "100%abc", "MAPOrganizationKey": "7"}
    assert config["mine"]["user_upload_token"] == "t%oken"


def test_the_token_appears_nowhere(sandbox: Sandbox, folder: Path) -> None:
    message = {"error": {"message": f"no {TOKEN}"}, "debug_info": {"message": f"no {TOKEN}"}}
    sandbox.faults += [
        Fault(match="POST /mly", status=500, body=message, times=2),
        Fault(match="POST /fin", status=400, body=message),
    ]
    result = upload(folder, sandbox, "-v")
    left = b"".join(path.read_bytes() for path in folder.glob("mapillary_uploader.*"))
    assert "POST /finish_upload: 400" in result.err and "[token]" in result.err
    assert TOKEN not in result.out + result.err and TOKEN.encode() not in left
    assert all(TOKEN not in str(request.query) for request in sandbox.requests)


def test_netrc_does_not_replace_the_token(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert upload(folder, sandbox, env={"HOME": str(tmp_path)}).code == 0


def test_a_log_has_dated_lines_and_no_control_characters(sandbox: Sandbox, folder: Path) -> None:
    result = upload(folder, sandbox)
    assert all(line[:2] == "20" and line[19] == "Z" for line in result.err.splitlines())
    assert "\r" not in result.err and "\x1b" not in result.err + result.out


def test_quiet_is_silent_when_all_is_well(sandbox: Sandbox, folder: Path) -> None:
    result = upload(folder, sandbox, "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_terminal_gets_a_progress_bar(sandbox: Sandbox, folder: Path) -> None:
    sandbox.delay = 0.2
    master, terminal = pty.openpty()
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo"]
    process = subprocess.Popen(command, env=environment(sandbox), stderr=terminal, stdout=subprocess.PIPE)
    os.close(terminal)
    screen = b""
    with pytest.raises(OSError):  # how a pseudo-terminal ends
        while True:
            screen += os.read(master, 4096)
    assert process.wait() == 0 and b"/8 photos" in screen and b"\r" in screen
    bars = [part for part in screen.decode().split("\r") if part.endswith("\x1b[K")]
    assert bars and all(len(bar) <= 79 + len("\x1b[K") for bar in bars)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_cannot_be_printed_do_no_harm(sandbox: Sandbox, tmp_path: Path, encoding: str) -> None:
    names = ["Zürich_写真.jpg", os.fsdecode(b"bad\xff.jpg"), "new\nline.jpg"]
    folder = factory.write_tour(tmp_path / "tour", factory.tour(3, names=names))
    settings = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    result = upload(folder, sandbox, "-v", "--json", env=settings)
    assert result.code == 0 and {photo["file"] for photo in result.document["photos"]} == set(names)
    assert upload(folder, sandbox, env=settings).code == 0


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/St_Johns"])
def test_this_machines_zone_changes_nothing(folder: Path, zone: str) -> None:
    result = run("-d", folder, "--dry-run", "--json", env=environment(TZ=zone))
    assert result.document["photos"][0]["description"]["MAPCaptureTime"] == "2021_07_29_09_16_54_000"


def test_a_closed_stdout_changes_nothing(sandbox: Sandbox, folder: Path) -> None:
    command = f"'{sys.executable}' '{PROGRAM}' -d '{folder}' -u demo; echo $? >&2"
    done = subprocess.run(["sh", "-c", f"({command}) | true"], env=environment(sandbox), capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0" and "Traceback" not in done.stderr


def test_min_age_waits_for_a_folder_that_is_still_being_copied(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox, "--min-age", "600").code == 1
    for path in folder.glob("*.jpg"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert upload(folder, sandbox, "--min-age", "600").code == 0


def test_output_never_goes_into_the_folder_nor_over_another_file(folder: Path, tmp_path: Path) -> None:
    for output in (folder, folder / "below"):
        assert run("-d", folder, "--dry-run", "--output", output).code == 2
    other = tmp_path / "out" / sorted(path.name for path in folder.iterdir())[0]
    other.parent.mkdir()
    other.write_bytes(b"precious")
    assert run("-d", folder, "--dry-run", "--output", other.parent).code == 2 and other.read_bytes() == b"precious"


def test_an_unexpected_error_shows_no_traceback(folder: Path) -> None:
    code = f"import mapillary_uploader as m; m.plan = lambda *_: 1 / 0; raise SystemExit(m.cli(['-d', {str(folder)!r}, '--dry-run', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM.parent, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and json.loads(done.stdout)["exit_code"] == 1


def test_the_first_in_the_order_of_exit_codes_wins() -> None:
    assert mu.worst([mu.Exit.REJECTED, mu.Exit.UNFINISHED, mu.Exit.DONE]) == 1
    assert mu.worst([mu.Exit.UNFINISHED, mu.Exit.OVERDUE, mu.Exit.SIGN_IN, mu.Exit.USAGE]) == 2
    assert mu.worst([]) == 0


def oauth(sandbox: Sandbox, tmp_path: Path, **changes: Any) -> mu.Shell:
    """A shell whose person pastes what the sandbox's /connect redirects to (or `answer`)."""
    import urllib.error
    import urllib.request

    env = without_token(sandbox) | {"MAPILLARY_CLIENT_ID": "4242", "MAPILLARY_CLIENT_SECRET": "sandbox-secret"}
    env |= {
        "MAPILLARY_REDIRECT_URI": "https://example.com/back",
        "MAPILLARY_CONFIG_PATH": str(tmp_path / "c" / "config"),
    }
    options = mu.Options(username="demo", quiet=True)
    console = mu.Console(options, mu.Clock())
    console.can_ask = True
    shown: list[str] = []

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    def ask(_: str, hidden: bool = False) -> str:
        try:
            urllib.request.build_opener(NoRedirect).open(shown[-1])
        except urllib.error.HTTPError as error:
            return str(changes.get("answer") or error.headers["Location"])
        return ""

    console.say, console.ask = shown.append, ask  # type: ignore[method-assign, assignment]
    line = mu.Line(0, mu.Clock(), lambda _: None)
    return mu.Shell(options, env, console, mu.Clock(), mu.service_from(env), line)


def test_oauth_saves_a_token_that_later_runs_renew(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    sandbox.token_lifetime = 3600
    shell = oauth(sandbox, tmp_path)
    first = mu.log_in(shell)
    assert first.expires
    result = run("-d", folder, "-u", "demo", env=shell.environment)
    assert result.code == 0, result.err
    renewed = mu.find_profile("demo", shell.environment, lambda _: None)
    assert renewed and renewed.token != first.token


def test_oauth_says_in_plain_words_what_went_wrong(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(mu.SignInError, match="not the answer to this sign-in"):
        mu.log_in(oauth(sandbox, tmp_path, answer="https://example.com/back?code=1&state=forged"))
    sandbox.deny = True
    with pytest.raises(mu.SignInError, match="did not allow it: user_denied"):
        mu.log_in(oauth(sandbox, tmp_path))


def test_email_and_password_are_asked_up_to_three_times(sandbox: Sandbox, tmp_path: Path) -> None:
    shell = oauth(sandbox, tmp_path)
    shell.environment = {k: v for k, v in shell.environment.items() if "CLIENT" not in k}
    answers = iter(["demo@example.com", "wrong", "demo@example.com", "sandbox-password"])
    shell.console.ask = lambda *_, **__: next(answers)  # type: ignore[method-assign]
    assert mu.log_in(shell).username == "demo"
    answers = iter(["demo@example.com", "wrong"] * 3)
    with pytest.raises(mu.SignInError, match="not signed in"):
        mu.log_in(shell)


def test_redirects_are_not_followed(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match="GET /me", status=302, headers={"Location": "http://127.0.0.1:9/"}, times=None))
    assert upload(folder, sandbox, "--retries", "0").code == 1


@pytest.mark.parametrize("url", ["http://example.com", "ftp://localhost", "example.com"])
def test_the_token_leaves_this_machine_over_https_only(folder: Path, url: str) -> None:
    result = run("-d", folder, "-u", "demo", env=environment(MAPILLARY_GRAPH_API_ENDPOINT=url))
    assert result.code == 2 and "not https" in result.err


def test_manifest_lists_the_photos_in_capture_order(sandbox: Sandbox, folder: Path) -> None:
    assert upload(folder, sandbox).code == 0
    times = [photo.description["MAPCaptureTime"] for photo in sandbox.clusters[0].photos]
    assert times == sorted(times) and sandbox.max_in_flight <= 4
    assert all(photo.session_key == f"mly_tools_{photo.md5}.jpg" for photo in sandbox.clusters[0].photos)
    assert len([r for r in sandbox.requests if r.path.endswith(".jpg")]) == 8
    assert hashlib.md5(b"").hexdigest() not in {photo.md5 for photo in sandbox.clusters[0].photos}


@pytest.mark.parametrize("home", ["", "/no/such/home", "/proc"])
def test_a_home_that_is_missing_or_read_only_does_not_matter(sandbox: Sandbox, folder: Path, home: str) -> None:
    assert upload(folder, sandbox, env={"HOME": home}).code == 0
    assert run("-d", folder, "-u", "demo", env=without_token(sandbox) | {"HOME": home}).code == 4


def test_a_second_ctrl_c_ends_at_once(sandbox: Sandbox, folder: Path) -> None:
    sandbox.faults.append(Fault(match="POST /finish_upload", hang=60, times=None))
    command = [sys.executable, str(PROGRAM), "-d", str(folder), "-u", "demo", "--quiet"]
    process = subprocess.Popen(command, env=environment(sandbox), stderr=subprocess.DEVNULL)
    while not any(request.path == "/finish_upload" for request in sandbox.requests):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=8) in (-signal.SIGINT, 130)
    assert upload(folder, sandbox, "--quiet").code == 1


def test_the_official_client_reads_the_profile_that_login_saves(sandbox: Sandbox) -> None:
    from mapillary_tools import config

    env = environment(sandbox)
    assert run("--login", "-u", "work", env=env).code == 0
    profile = config.load_user("work", str(next(Path(env["HOME"]).rglob("MLY_*"))))
    assert profile["user_upload_token"] == TOKEN and profile["MAPSettingsUserKey"] == "1001"


def test_a_log_gets_at_most_one_progress_line_in_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FastClock()
    console = mu.Console(mu.Options(), clock)
    for _ in range(100):
        clock.ahead += 1
        console.checking(1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all("checking photos: 1 of 2" in line for line in lines)
