"""Signing in: where a token is found and kept, whose it must be, and that nobody gets to see it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Account, Fault, Sandbox
from support import PROGRAM, FastClock, Ran, environment, run, service_of, upload

TOKEN = "MLY|sandbox|demo-token"
TREKKER = Account("1002", "trekker", "MLY|sandbox|trekker-token", "trekker@example.com", "other-password")
APPLICATION = {"MAPILLARY_CLIENT_ID": "4242", "MAPILLARY_CLIENT_SECRET": "sandbox-secret"}
CALLBACK = {"MAPILLARY_REDIRECT_URI": "https://example.com/back"}
OWN = mu.Application("4242", "sandbox-secret", "https://example.com/back")


def signed_out(sandbox: Sandbox, **changes: str) -> dict[str, str]:
    """The sandbox's environment, with an empty home, in which nobody has signed in."""
    return {name: value for name, value in environment(sandbox, **changes).items() if name != "MAPILLARY_ACCESS_TOKEN"}


def configs(env: Mapping[str, str]) -> Path:
    return Path(env["HOME"]) / ".config" / "mapillary" / "configs"


def saved(env: Mapping[str, str]) -> Path:
    """The one file that sign-ins have been saved to."""
    (path,) = configs(env).iterdir()
    return path


def keep(env: Mapping[str, str], name: str = "MLY_0", **sections: str) -> Path:
    """A profile file of the official client."""
    path = configs(env) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"[{section}]\n{lines}\n" for section, lines in sections.items()))
    path.chmod(0o600)
    return path


def profile(token: str = TOKEN, username: str = "", days_left: float | None = None) -> str:
    lines = f"user_upload_token = {token}\n"
    lines += f"MAPSettingsUsername = {username}\n" * bool(username)
    then = time.gmtime(time.time() + 86_400 * (days_left or 0))
    return lines + f"MAPTokenExpires = {time.strftime('%Y-%m-%dT%H:%M:%S.000Z', then)}\n" * (days_left is not None)


def try_to(sandbox: Sandbox, env: Mapping[str, str], name: str = "demo", *words: str) -> tuple[Ran, str]:
    """A run that does little more than sign in (it ends with 1, 4 without account), and the token that /me was shown."""
    folder, before = factory.write_tour(Path(tempfile.mkdtemp()), factory.tour(1)), len(sandbox.requests)
    ran = run("-d", folder, "-u", name, "--check", *words, env=env)
    asked = [r.headers["authorization"] for r in sandbox.requests[before:] if r.path == "/me"]
    return ran, asked[0].removeprefix("OAuth ") if asked else ""


@pytest.fixture
def both(sandbox: Sandbox) -> Sandbox:
    """A sandbox with two accounts, demo and trekker."""
    sandbox.accounts.append(TREKKER)
    return sandbox


# ---- where the token is found ----


def test_the_environment_counts_before_the_username_before_the_profiles_name(both: Sandbox) -> None:
    env = signed_out(both)
    keep(env, "MLY_1", demo=profile("by-name"))
    assert try_to(both, env)[1] == "by-name"
    keep(env, "MLY_2", other=profile("by-username", "demo"), trekker=profile(TREKKER.token))
    assert try_to(both, env)[1] == "by-username" and try_to(both, env, "trekker")[1] == TREKKER.token
    assert try_to(both, env | {"MAPILLARY_ACCESS_TOKEN": f" {TOKEN}\n"})[1] == TOKEN
    elsewhere = keep(env, "elsewhere.ini", demo=profile("by-path"))
    assert try_to(both, env | {"MAPILLARY_CONFIG_PATH": str(elsewhere)})[1] == "by-path"
    assert try_to(both, env | {"MAPILLARY_CONFIG_PATH": str(elsewhere)}, "trekker")[0].code == 4


def test_profiles_of_old_clients_without_a_token_are_passed_over(sandbox: Sandbox) -> None:
    env = signed_out(sandbox)
    keep(env, demo="MAPSettingsUsername = demo\nMAPSettingsUserPassword = x\n", other=profile("T%25oken", "demo"))
    assert try_to(sandbox, env)[1] == "T%25oken"


def test_a_broken_profile_file_is_warned_of_and_hides_no_other(sandbox: Sandbox) -> None:
    env = signed_out(sandbox)
    keep(env, "MLY_0").write_text("no INI")
    keep(env, "MLY_1").write_bytes(b"[\xff]\n")
    keep(env, "MLY_2", demo=profile())
    (configs(env) / "MLY_3").mkdir()
    ran, token = try_to(sandbox, env)
    assert (ran.code, token) == (1, TOKEN) and all(f"MLY_{n} can't be read" in ran.err for n in (0, 1, 3))
    ran, _ = try_to(sandbox, env | {"MAPILLARY_CONFIG_PATH": str(configs(env) / "MLY_0")})
    assert ran.code == 4 and "MLY_0 can't be read" in ran.err


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_a_profile_file_that_others_can_read_is_warned_of(sandbox: Sandbox, mode: int, warned: bool) -> None:
    env = signed_out(sandbox)
    keep(env, demo=profile()).chmod(mode)
    assert ("chmod 600" in try_to(sandbox, env)[0].err) is warned


@pytest.mark.parametrize("home", ["", "/proc", "missing"])
def test_a_home_that_is_missing_or_read_only_does_not_matter(
    sandbox: Sandbox, folder: Path, tmp_path: Path, home: str
) -> None:
    home = str(tmp_path / home) if home == "missing" else home
    assert upload(folder, sandbox, env={"HOME": home}).code == 0
    if home:  # else it is the machine's own
        assert try_to(sandbox, signed_out(sandbox, HOME=home))[0].code == 4
        ran = run("--login", "-u", "demo", env=environment(sandbox, HOME=home))
        assert ran.code == 4 * (home == "/proc") and ("can't be saved" in ran.err) is (home == "/proc")


def test_without_token_or_terminal_it_says_what_to_do(sandbox: Sandbox) -> None:
    ran, _ = try_to(sandbox, signed_out(sandbox))
    assert ran.code == 4 and "MAPILLARY_ACCESS_TOKEN" in ran.err and "--login -u demo" in ran.err
    ran = run("--login", "-u", "demo", env=signed_out(sandbox))
    assert ran.code == 4 and "needs a terminal" in ran.err and sandbox.requests == []


# ---- whose it is ----


@pytest.mark.parametrize(
    "token", ["'quoted'", '"quoted"', "with space", "“curly”", "a\tb", "a\nb", "a\x1b[31mb", "tökén"]
)
def test_an_odd_token_is_refused_before_it_is_sent(sandbox: Sandbox, token: str) -> None:
    for env in (environment(sandbox, MAPILLARY_ACCESS_TOKEN=token), signed_out(sandbox)):
        if "MAPILLARY_ACCESS_TOKEN" not in env:
            keep(env, demo=profile(token.replace("\n", " ")))
        ran, _ = try_to(sandbox, env)
        assert ran.code == 4 and "Copy it anew" in ran.err and token not in ran.err and sandbox.requests == []


def test_a_token_that_mapillary_refuses_exits_4(sandbox: Sandbox) -> None:
    ran, _ = try_to(sandbox, environment(sandbox, MAPILLARY_ACCESS_TOKEN="bad"))
    assert ran.code == 4 and "refuses the token" in ran.err and "--login" in ran.err
    sandbox.faults.append(Fault("GET /2002", status=403))
    assert try_to(sandbox, environment(sandbox), "demo", "-o", "2002")[0].code == 4


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET /me", None, status=503),
        Fault("GET /me", None, drop_after=0),
        Fault("GET /me", body={}),
        Fault("", status=302),
    ],
)
def test_where_me_gives_no_answer_it_is_exit_1(sandbox: Sandbox, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mu.Run, "clock", FastClock())
    sandbox.faults.append(fault)
    with pytest.raises(mu.UploaderError, match="GET /me") as error:
        mu.account_of(TOKEN, service=service_of(sandbox))
    assert error.value.code == 1


def test_the_token_is_not_sent_on_to_where_a_redirect_leads(sandbox: Sandbox) -> None:
    with Sandbox() as other:
        for address in (f"{other.url}/graph/me", f"{sandbox.url}/graph/elsewhere"):
            sandbox.faults.append(Fault("GET /me", status=307, headers={"Location": address}))
            assert try_to(sandbox, environment(sandbox))[0].code == 1
        assert other.requests == [] and {request.path for request in sandbox.requests} == {"/me"}


def test_netrc_does_not_replace_the_token(sandbox: Sandbox) -> None:
    env = environment(sandbox)
    netrc = Path(env["HOME"]) / ".netrc"
    netrc.write_text("default login a password b\n")
    netrc.chmod(0o600)
    assert try_to(sandbox, env)[1] == TOKEN


def test_the_token_must_be_of_that_account_or_come_from_the_profile_of_that_name(both: Sandbox, folder: Path) -> None:
    assert upload(folder, both, env={"MAPILLARY_ACCESS_TOKEN": TREKKER.token}).code == 4
    env = signed_out(both)
    keep(env, demo=profile(TREKKER.token), other=profile(TREKKER.token, "stranger"))
    assert try_to(both, env, "stranger")[0].code == 4  # it says so, but it isn't
    ran = run("-d", folder, "-u", "demo", "--json", env=env)
    assert ran.code == 0 and ran.document["username"] == "trekker"  # whom /me names
    assert "account trekker (1002)" in ran.err and both.clusters[0].username == "trekker"


def test_recursive_signs_in_once(sandbox: Sandbox, tmp_path: Path) -> None:
    for number in range(2):
        factory.write_tour(tmp_path / f"{number}", factory.tour(1, latitude=50 + number))
    assert upload(tmp_path, sandbox, "-r").code == 0
    assert [request.path for request in sandbox.requests].count("/me") == 1


@pytest.mark.parametrize(("organization", "code"), [("2002", 0), ("1001", 2), ("2003", 2), ("99", 2)])
def test_the_organization_must_be_one_and_is_named_before_anything_is_sent(
    sandbox: Sandbox, folder: Path, organization: str, code: int
) -> None:
    sandbox.organizations["2003"] = {"description": "neither name nor slug"}
    ran = upload(folder, sandbox, "-o", organization)
    assert ran.code == code and organization in ran.err
    assert [cluster.organization_id for cluster in sandbox.clusters] == [organization] * (not code)
    assert len(sandbox.requests) == 2 or not code
    first = ran.err.splitlines()[0]
    assert code or "account demo (1001) for the organization Sandbox Organization (2002)" in first


# ---- signing in ----


def test_login_keeps_a_token_where_later_runs_and_mapillary_tools_find_it(both: Sandbox, folder: Path) -> None:
    config, env = pytest.importorskip("mapillary_tools.config"), environment(both)
    ran = run("--login", "-u", "trekker", env=env)
    assert ran.code == 4 and "that is the account demo, not trekker" in ran.err and not configs(env).exists()
    assert run("--login", "-u", "demo", "-d", "photos that are not here", env=env).code == 0
    path = saved(env)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    kept = {"user_upload_token": TOKEN, "MAPSettingsUsername": "demo", "MAPSettingsUserKey": "1001"}
    assert config.load_user("demo", str(path)) == kept
    config.update_config("work", {"user_upload_token": TREKKER.token, "MAPSettingsUserKey": "1002"}, str(path))
    del env["MAPILLARY_ACCESS_TOKEN"]
    assert try_to(both, env)[1] == TOKEN and try_to(both, env, "work")[1] == TREKKER.token


def test_login_leaves_other_sections_as_they_are_and_replaces_its_own(sandbox: Sandbox) -> None:
    env = environment(sandbox)
    others = "user_upload_token = 100%abc\nMAPOrganizationKey = 7\nCamelCase = x = y\n"
    path = keep(env, "elsewhere", Other=others, demo=profile("old", days_left=9) + "MAPOrganizationKey = 8\n")
    path.chmod(0o644)
    assert run("--login", "-u", "demo", env=env | {"MAPILLARY_CONFIG_PATH": str(path)}).code == 0
    text = path.read_text()
    assert (
        f"[Other]\n{others}" in text
        and "old" not in text
        and "Expires" not in text
        and "MAPOrganizationKey = 8" in text
    )
    assert path.stat().st_mode & 0o777 == 0o600 and saved(env) == path


@pytest.mark.parametrize("name", ["two\n[lines]", "a\rb", "DEFAULT", "\x1b[31m"])
def test_a_name_that_would_break_the_profile_file_is_not_saved(sandbox: Sandbox, name: str) -> None:
    env = environment(sandbox)
    path = keep(env, "elsewhere", demo=profile())
    before, sandbox.accounts[0] = path.read_bytes(), Account(username=name)
    ran = run("--login", "-u", name, env=env | {"MAPILLARY_CONFIG_PATH": str(path)})
    assert ran.code == 4 and "can't be saved" in ran.err and "\x1b" not in ran.err
    assert path.read_bytes() == before and saved(env) == path


def on_a_full_disk(*words: str, env: Mapping[str, str]) -> Ran:
    """A run in which no byte can be written to a file."""
    command = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, str(PROGRAM), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_profile_that_cannot_be_saved_leaves_the_old_file_whole_and_no_token_beside_it(sandbox: Sandbox) -> None:
    env = environment(sandbox)
    path = keep(env, "elsewhere", demo=profile("old"), other=profile("x"))
    before = path.read_bytes()
    ran = on_a_full_disk("--login", "-u", "demo", env=env | {"MAPILLARY_CONFIG_PATH": str(path)})
    assert ran.code == 4 and "can't be saved" in ran.err and path.read_bytes() == before and saved(env) == path


# ---- on a terminal ----


def on_a_terminal(
    *words: str | Path, env: Mapping[str, str], answers: list[tuple[str, Any]], stdout: IO[str] | None = None
) -> Ran:
    """Run on a pseudo-terminal; each question is answered by a text, a function of the screen, or a signal. `out`: the screen."""
    master, terminal = pty.openpty()
    own_it = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-c", own_it, sys.executable, str(PROGRAM), *map(str, words)]
    process = subprocess.Popen(
        command, env=env, stdin=terminal, stdout=stdout or terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    guard, status = threading.Timer(120, process.kill), Path(f"/proc/{process.pid}/stat")
    guard.start()
    screen, seen = "", 0
    with contextlib.suppress(OSError):  # how a pseudo-terminal ends
        while block := os.read(master, 4096):
            screen += block.decode(errors="replace")
            if answers and answers[0][0] in screen[seen:]:
                seen, (_, answer) = len(screen), answers.pop(0)
                while status.exists() and status.read_text().rpartition(") ")[2][0] in "RD":
                    time.sleep(0.001)  # a signal just before input() begins to wait is kept back until it ends
                if isinstance(answer, signal.Signals):
                    process.send_signal(answer)
                else:
                    os.write(master, (answer(screen) if callable(answer) else answer).encode())
    guard.cancel()
    os.close(master)
    return Ran(process.wait(), screen, "")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def browser(screen: str) -> str:
    """What the address bar shows in the end, for the address on the screen."""
    address = re.findall(r"http://\S+/connect\?\S+", screen)[-1]
    with pytest.raises(HTTPError) as redirect:
        urllib.request.build_opener(NoRedirect).open(address)
    return str(redirect.value.headers["Location"])


def pasted(change: Callable[[str], str] = str) -> list[tuple[str, Any]]:
    return [("Address: ", lambda screen: change(browser(screen)) + "\n")]


MAIL, PASSWORD = ("E-mail: ", "demo@example.com\n"), ("(not shown): ", "sandbox-password\n")
WRONG = ("(not shown): ", "wrong-password\n")


def test_an_email_and_password_sign_in_within_three_tries(sandbox: Sandbox) -> None:
    env = signed_out(sandbox)
    answers = [MAIL, WRONG, MAIL, WRONG, MAIL, PASSWORD]
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=answers)
    assert ran.code == 0 and "Google" in ran.out and f"user_upload_token = {TOKEN}" in saved(env).read_text()
    assert ran.out.count("email or password you entered is incorrect") == 2
    assert "sandbox-password" not in ran.out and "wrong-password" not in ran.out
    env = signed_out(sandbox)
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=[MAIL, WRONG] * 4)
    assert ran.code == 4 and "not signed in" in ran.out and ran.out.count("E-mail") == 3 and not configs(env).exists()
    ran = on_a_terminal("--login", "-u", "trekker", env=env, answers=[MAIL, PASSWORD])
    assert ran.code == 4 and "account demo, not trekker" in ran.out and not configs(env).exists()


def test_a_password_that_the_server_says_back_is_not_shown(sandbox: Sandbox) -> None:
    body = {"error": {"message": "m", "error_user_msg": f"wrong: pass%20word, {quote('pass word')}, pass word"}}
    sandbox.faults.append(Fault("POST /login", times=3, status=400, body=body))
    answers = [MAIL, ("(not shown): ", "pass word\n")] * 3
    ran = on_a_terminal("--login", "-v", "-u", "demo", env=signed_out(sandbox), answers=answers)
    assert ran.code == 4 and "wrong: " in ran.out and "pass word" not in ran.out and "pass%20word" not in ran.out


@pytest.mark.parametrize(("end", "code"), [("\x03", 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_at_the_question_ends_without_a_word_of_saved_work(
    sandbox: Sandbox, folder: Path, end: Any, code: int
) -> None:
    for words in (["--login"], ["-d", folder]):
        ran = on_a_terminal(*words, "-u", "demo", env=signed_out(sandbox), answers=[("E-mail: ", end)])
        assert ran.code == code and "saved" not in ran.out.partition("E-mail")[2] and "Traceback" not in ran.out


def test_a_run_on_a_terminal_offers_to_sign_in_and_goes_on(sandbox: Sandbox, folder: Path) -> None:
    env = signed_out(sandbox)
    ran = on_a_terminal("-d", folder, "-u", "demo", env=env, answers=[MAIL, PASSWORD])
    assert ran.code == 0 and len(sandbox.published) == 8 and saved(env).exists()


def test_what_is_asked_on_a_terminal_keeps_out_of_what_a_program_reads(sandbox: Sandbox, tmp_path: Path) -> None:
    oauth = signed_out(sandbox, **APPLICATION, **CALLBACK)
    for env, answers in ((signed_out(sandbox), [MAIL, PASSWORD]), (oauth, pasted())):
        with open(tmp_path / "stdout", "w", encoding="utf-8") as stdout:
            ran = on_a_terminal("--login", "-u", "demo", env=env, answers=answers, stdout=stdout)
        assert ran.code == 0 and "signed in as demo" in ran.out and (tmp_path / "stdout").read_text() == ""


def test_oauth_asks_for_consent_and_keeps_a_token_that_later_runs_renew(sandbox: Sandbox) -> None:
    env = signed_out(sandbox, **APPLICATION, **CALLBACK)
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=pasted())
    kept = saved(env).read_text()
    assert ran.code == 0 and "MAPTokenExpires" in kept and re.search(r"user_upload_token = MLY\|4242\|\w+", kept)
    assert "sandbox-secret" not in ran.out + kept and f"signed in as demo; saved in {saved(env)}" in ran.out
    ran, token = try_to(sandbox, env)
    assert ran.code == 1 and token not in kept and token in saved(env).read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("state=", "state=x"), "not the answer to this sign-in"),
        (lambda url: url.partition("&state")[0], "not the answer to this sign-in"),
        (lambda url: url.partition("?")[0], "not the answer to this sign-in"),
        (lambda url: re.sub("code=[^&]*", "", url), "not the answer to this sign-in"),
        (lambda url: url.replace("code=", "code=x"), "Mapillary gives no token"),
        (None, "did not allow it: user_denied"),
    ],
    ids=["forged", "no state", "half an address", "no code", "wrong code", "denied"],
)
def test_oauth_says_what_went_wrong(sandbox: Sandbox, change: Callable[[str], str] | None, words: str) -> None:
    sandbox.deny = change is None
    env = signed_out(sandbox, **APPLICATION, **CALLBACK)
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=pasted(change or str))
    assert ran.code == 4 and words in ran.out and not configs(env).exists()


def test_oauth_needs_the_callback_address(sandbox: Sandbox) -> None:
    ran = on_a_terminal("--login", "-u", "demo", env=signed_out(sandbox, **APPLICATION), answers=[])
    assert ran.code == 2 and "MAPILLARY_REDIRECT_URI" in ran.out


# ---- OAuth from Python, and renewal ----


def test_a_web_application_exchanges_a_code_once_and_renews_the_token(sandbox: Sandbox) -> None:
    service = service_of(sandbox)
    address = mu.authorize_url(OWN, "st=te&", service)
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    asked = {"client_id": "4242", "redirect_uri": OWN.redirect_uri, "response_type": "code", "state": "st=te&"}
    assert {name: query[name] for name in asked} == asked and set(query["scope"].split()) == {"read", "write", "upload"}
    assert mu.authorize_url(OWN, "s").startswith("https://www.mapillary.com/connect?")
    back = parse_qs(urlsplit(browser(address)).query)
    assert back["state"] == ["st=te&"]
    first = mu.token_from(OWN, back["code"][0], service)
    assert mu.account_of(first.token, service=service).username == "demo"
    with pytest.raises(mu.SignInError, match="gives no token"):
        mu.token_from(OWN, back["code"][0], service)
    sandbox.token_lifetime = 86_400
    second = mu.renewed(OWN, first, service)
    assert second.token != first.token and second.expires > first.expires
    assert mu.account_of(second.token, service=service).user_id == "1001"
    for secret in (OWN.client_secret, first.token):
        assert secret not in repr((OWN, first, mu.account_of(first.token, service=service)))
    sandbox.faults.append(Fault("POST /token", status=400, body={"error": {"message": "no: sandbox-secret code-77"}}))
    with pytest.raises(mu.SignInError, match=r"no: \[token\] \[token\]") as error:
        mu.token_from(OWN, "code-77", service)
    assert error.value.code == 4


@pytest.mark.parametrize("file", ["MLY_0", "MLY_5675155192195640_0"])
def test_a_token_is_renewed_a_week_before_its_end_in_the_file_that_it_came_from(sandbox: Sandbox, file: str) -> None:
    sandbox.token_lifetime = 60 * 86_400
    env = signed_out(sandbox, **APPLICATION)
    path = keep(env, file, demo=profile(days_left=8), other=profile("x"))
    assert try_to(sandbox, env)[1] == TOKEN
    keep(env, file, demo=profile(days_left=6), other=profile("x"))
    renewed = [try_to(sandbox, env)[1] for _ in range(2)]
    assert TOKEN not in renewed and renewed[0] == renewed[1] and saved(env) == path
    assert renewed[0] in path.read_text() and "user_upload_token = x" in path.read_text()


@pytest.mark.parametrize(("days", "code", "words"), [(-1, 4, "has run out"), (3, 1, "runs out on 20"), (30, 1, "")])
@pytest.mark.parametrize("refused", [False, True])
def test_a_token_that_cannot_be_renewed_serves_until_its_end(
    sandbox: Sandbox, days: float, code: int, words: str, refused: bool
) -> None:
    env = signed_out(sandbox, **(APPLICATION if refused else {}))
    sandbox.faults.append(Fault("POST /token", status=400, body={"error": {"message": f"no: {TOKEN}"}}))
    keep(env, demo=profile(days_left=days))
    ran, token = try_to(sandbox, env, "demo", "-v")
    assert ran.code == code and words in ran.err and token == TOKEN * (code == 1)
    assert ("could not be renewed" in ran.err and "no: [token]" in ran.err) is (refused and days < 7)
    assert TOKEN not in ran.out + ran.err and "warning" in ran.err or days == 30 or code == 4


def test_a_renewed_token_that_cannot_be_saved_serves_the_run_and_is_left_nowhere(sandbox: Sandbox) -> None:
    env = signed_out(sandbox, **APPLICATION)
    path = keep(env, demo=profile(days_left=3))
    before, empty = path.read_bytes(), factory.write_tour(Path(env["HOME"]) / "empty", factory.tour(1))
    ran = on_a_full_disk("-d", str(empty), "-u", "demo", "--check", env=env)
    assert ran.code == 1 and "not be saved" in ran.err and sandbox.requests[-1].path == "/me"
    assert TOKEN not in sandbox.requests[-1].headers["authorization"]
    assert path.read_bytes() == before and saved(env) == path


# ---- the token appears nowhere ----


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "as in an address": lambda token: quote(token, safe=""),
    "in small letters": lambda token: quote(token, safe="").replace("%7C", "%7c"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_token_appears_nowhere(sandbox: Sandbox, folder: Path, form: Callable[[str], str]) -> None:
    said = f"no: {form(TOKEN)}"
    body: Any = {"error": {"message": said}, "debug_info": {"message": said}}
    for match, more in (("POST /mly", {"times": 2}), ("POST /finish", {"body": {"error": {"message": said}}})):
        sandbox.faults.append(Fault(**{"match": match, "status": 500, "body": body, **more}))
    sandbox.faults.append(Fault("GET /me", after=1, status=400, body=body))
    told = [upload(folder, sandbox, "-v", "--json") for _ in range(2)]
    left = b"".join(path.read_bytes() for path in folder.glob("*mapillary_uploader*"))
    shown = "".join(ran.out + ran.err for ran in told)
    assert [ran.code for ran in told] == [1, 1] and shown.count("no: [token]") >= 4
    assert "demo-token" not in shown and b"demo-token" not in left
    assert not any("demo-token" in str((request.query, request.path)) for request in sandbox.requests)


@pytest.mark.parametrize(
    "around",
    [b"%s", b'{"error": {"message": "%s"}}', b"<p>%s</p>", b"<!--%s-->"],
    ids=["text", "JSON", "HTML", "comment"],
)
def test_the_token_is_not_shown_where_a_long_message_is_cut_inside_it(sandbox: Sandbox, around: bytes) -> None:
    for before in [*range(75, 101, 3), *range(275, 301, 3), *range(3970, 4001, 5)]:
        for filler in (b"x", b"<i>"):
            said = (filler * before)[:before] + TOKEN.encode() + b"y" * 50
            sandbox.faults = [Fault("GET /me", status=400, body=around.replace(b"%s", said))]
            with pytest.raises(mu.UploaderError) as error:
                mu.account_of(TOKEN, service=service_of(sandbox))
            assert "MLY" not in str(error.value)
