"""Signing in: where a token is found and kept, whose it must be, and that nobody gets to see it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

import factory
import mapillary_uploader as mu
from sandbox import Account, Fault, Sandbox
from support import PROGRAM, FastClock, Ran, environment, redirect_of, run, service_of, upload

TOKEN = "MLY|sandbox|demo-token"
TREKKER = Account("1002", "trekker", "MLY|sandbox|trekker-token", "trekker@example.com", "other-password")
APPLICATION = {"MAPILLARY_CLIENT_ID": "4242", "MAPILLARY_CLIENT_SECRET": "sandbox-secret"}
CALLBACK = {"MAPILLARY_REDIRECT_URI": "https://example.com/back"}
OWN = mu.Application("4242", "sandbox-secret", "https://example.com/back")
Env = dict[str, str]


@pytest.fixture
def both(sandbox: Sandbox) -> Sandbox:
    """A sandbox with two accounts, demo and trekker."""
    sandbox.accounts.append(TREKKER)
    return sandbox


def signed_out(sandbox: Sandbox, **changes: str) -> Env:
    """The sandbox's environment, with an empty home, in which nobody has signed in."""
    return environment(sandbox, MAPILLARY_ACCESS_TOKEN="", **changes)


def configs(env: Env) -> Path:
    return Path(env["HOME"]) / ".config" / "mapillary" / "configs"


def saved(env: Env) -> Path:
    """The one file that sign-ins have been saved to."""
    (path,) = configs(env).iterdir()
    return path


def keep(env: Env, name: str = "MLY_0", **sections: str) -> Path:
    """A profile file of the official client."""
    path = configs(env) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"[{section}]\n{lines}\n" for section, lines in sections.items()))
    path.chmod(0o600)
    return path


def profile(token: str = TOKEN, username: str = "", days_left: float | None = None) -> str:
    then = time.gmtime(time.time() + 86_400 * (days_left or 0))
    expires = f"MAPTokenExpires = {time.strftime('%Y-%m-%dT%H:%M:%S.000Z', then)}\n" * (days_left is not None)
    return f"user_upload_token = {token}\n" + f"MAPSettingsUsername = {username}\n" * bool(username) + expires


def login(env: Env, name: str = "demo", **changes: str) -> Ran:
    return run("--login", "-u", name, env=env | changes)


def try_to(sandbox: Sandbox, env: Env, name: str = "demo", *words: str) -> tuple[Ran, str]:
    """A run that does little more than sign in (it ends with 1, 4 without account), and the token that /me was shown."""
    folder, before = factory.write_tour(Path(tempfile.mkdtemp()), factory.tour(1)), len(sandbox.requests)
    ran = run("-d", folder, "-u", name, "--check", *words, env=env)
    asked = [r.headers["authorization"] for r in sandbox.requests[before:] if r.path == "/me"]
    return ran, asked[0].removeprefix("OAuth ") if asked else ""


# ---- where the token is found ----


def test_the_environment_counts_before_the_username_before_the_profiles_name(both: Sandbox) -> None:
    env = signed_out(both)
    keep(env, "MLY_0", demo="MAPSettingsUsername = demo\nMAPSettingsUserPassword = x\n")  # an old client's
    keep(env, "MLY_1", demo=profile("by%25name"))
    assert try_to(both, env)[1] == "by%25name"
    keep(env, "MLY_2", other=profile("by-username", "demo"), trekker=profile(TREKKER.token))
    assert try_to(both, env)[1] == "by-username" and try_to(both, env, "trekker")[1] == TREKKER.token
    assert try_to(both, env | {"MAPILLARY_ACCESS_TOKEN": f" {TOKEN}\n"})[1] == TOKEN
    elsewhere = {"MAPILLARY_CONFIG_PATH": str(keep(env, "elsewhere.ini", demo=profile("by-path")))}
    assert try_to(both, env | elsewhere)[1] == "by-path" and try_to(both, env | elsewhere, "trekker")[0].code == 4


def test_a_profile_file_that_is_broken_or_that_others_can_read_is_warned_of_and_hides_no_other(
    sandbox: Sandbox,
) -> None:
    env = signed_out(sandbox)
    keep(env, "MLY_0").write_text("no INI")
    keep(env, "MLY_1").write_bytes(b"[\xff]\n")
    (configs(env) / "MLY_3").mkdir()
    for mode in (0o600, 0o640, 0o604):
        keep(env, "MLY_2", demo=profile()).chmod(mode)
        ran, token = try_to(sandbox, env)
        assert (ran.code, token) == (1, TOKEN) and all(f"MLY_{n} can't be read" in ran.err for n in (0, 1, 3))
        assert ("chmod 600" in ran.err) == (mode != 0o600)
    ran, _ = try_to(sandbox, env | {"MAPILLARY_CONFIG_PATH": str(configs(env) / "MLY_0")})
    assert ran.code == 4 and "MLY_0 can't be read" in ran.err


@pytest.mark.parametrize("home", ["", "/proc", "missing"])
def test_a_home_that_is_missing_or_read_only_does_not_matter(
    sandbox: Sandbox, folder: Path, tmp_path: Path, home: str
) -> None:
    home = home and str(tmp_path / home)
    assert upload(folder, sandbox, env={"HOME": home}).code == 0
    if home:  # else it is the machine's own
        assert try_to(sandbox, signed_out(sandbox, HOME=home))[0].code == 4
        ran = login(environment(sandbox, HOME=home))
        assert ran.code == 4 * (home == "/proc") and ("can't be saved" in ran.err) is (home == "/proc")


def test_without_token_or_terminal_it_says_what_to_do(sandbox: Sandbox) -> None:
    ran, _ = try_to(sandbox, signed_out(sandbox))
    assert ran.code == 4 and "MAPILLARY_ACCESS_TOKEN" in ran.err and "--login -u demo" in ran.err
    ran = login(signed_out(sandbox))
    assert ran.code == 4 and "needs a terminal" in ran.err and sandbox.requests == []


# ---- whose it is ----


@pytest.mark.parametrize("token", ["'a'", '"a"', "with space", "“curly”", "a\tb", "a\nb", "a\x1b[31mb", "tökén"])
def test_an_odd_token_is_refused_before_it_is_sent(sandbox: Sandbox, token: str) -> None:
    keep(kept := signed_out(sandbox), demo=profile(token.replace("\n", " ")))
    for env in (kept, environment(sandbox, MAPILLARY_ACCESS_TOKEN=token)):
        ran, _ = try_to(sandbox, env)
        assert ran.code == 4 and "Copy it anew" in ran.err and token not in ran.err and sandbox.requests == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop_after": 0}, {"body": {}}, {"status": 302}])
def test_where_me_gives_no_answer_it_is_exit_1(sandbox: Sandbox, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mu.Run, "clock", FastClock())
    sandbox.faults.append(Fault("GET /me", None, **fault))
    with pytest.raises(mu.UploaderError, match="GET /me") as error:
        mu.account_of(TOKEN, service=service_of(sandbox))
    assert error.value.code == 1


def test_the_token_must_be_of_that_account_or_come_from_the_profile_of_that_name(both: Sandbox, folder: Path) -> None:
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


@pytest.mark.parametrize(("organization", "code"), [("2002", 0), ("1001", 2), ("2003", 2), ("2004", 4)])
def test_the_organization_must_be_one_and_is_named_before_anything_is_sent(
    sandbox: Sandbox, folder: Path, organization: str, code: int
) -> None:
    sandbox.organizations["2003"] = {"description": "neither name nor slug"}
    sandbox.faults.append(Fault("GET /2004", status=403))
    ran = upload(folder, sandbox, "-o", organization)
    assert ran.code == code and (organization in ran.err or code == 4)
    assert [cluster.organization_id for cluster in sandbox.clusters] == [organization] * (not code)
    assert len(sandbox.requests) == 2 or not code
    first = ran.err.splitlines()[0]
    assert code or "account demo (1001) for the organization Sandbox Organization (2002)" in first


# ---- signing in ----


def test_login_keeps_a_token_where_later_runs_and_mapillary_tools_find_it(both: Sandbox) -> None:
    config, env = pytest.importorskip("mapillary_tools.config"), environment(both)
    ran = login(env, "trekker")
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
    (link := Path(env["HOME"]) / "link").symlink_to(path)
    assert login(env, MAPILLARY_CONFIG_PATH=str(link)).code == 0 and link.is_symlink()
    text = path.read_text()
    assert f"[Other]\n{others}" in text and "MAPOrganizationKey = 8" in text
    assert "old" not in text and "Expires" not in text
    assert path.stat().st_mode & 0o777 == 0o600 and saved(env) == path


@pytest.mark.parametrize("name", ["two\n[lines]", "a\rb", "DEFAULT", "\x1b[31m"])
def test_a_name_that_would_break_the_profile_file_is_not_saved(sandbox: Sandbox, name: str) -> None:
    env = environment(sandbox)
    path = keep(env, "elsewhere", demo=profile())
    before, sandbox.accounts[0] = path.read_bytes(), Account(username=name)
    ran = login(env, name, MAPILLARY_CONFIG_PATH=str(path))
    assert ran.code == 4 and "can't be saved" in ran.err and "\x1b" not in ran.err
    assert path.read_bytes() == before and saved(env) == path


def test_a_token_that_cannot_be_saved_serves_the_run_and_leaves_the_old_file_whole_and_nothing_beside_it(
    sandbox: Sandbox, folder: Path
) -> None:
    env = signed_out(sandbox, **APPLICATION)
    path = keep(env, demo=profile(days_left=3), other=profile("x"))
    env["MAPILLARY_CONFIG_PATH"], before = str(path), path.read_bytes()
    full_disk = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, 0))
    for token, words, code in ((TOKEN, ["--login"], 4), ("", ["--check", "-d", str(folder)], 1)):
        ran = run("-u", "demo", *words, env=env | {"MAPILLARY_ACCESS_TOKEN": token}, preexec_fn=full_disk)
        assert ran.code == code and "can't be saved" in ran.err and path.read_bytes() == before and saved(env) == path
    assert sandbox.requests[-1].path == "/me" and TOKEN not in sandbox.requests[-1].headers["authorization"]


# ---- on a terminal ----

MAIL, PASSWORD = ("E-mail: ", "demo@example.com\n"), ("(not shown): ", "sandbox-password\n")
WRONG = ("(not shown): ", "wrong word\n")


def on_a_terminal(*words: str | Path, env: Env, answers: list[tuple[str, Any]], **streams: Any) -> Ran:
    """Run on a pseudo-terminal; each question is answered by a text, a function of the screen, or a signal. `out`: the screen."""
    master, terminal = pty.openpty()
    command, streams = [sys.executable, str(PROGRAM), *map(str, words)], {"stdout": terminal} | streams
    process = subprocess.Popen(["setsid", "--ctty", *command], env=env, stdin=terminal, stderr=terminal, **streams)
    os.close(terminal)
    screen, seen, status = "", 0, Path(f"/proc/{process.pid}/stat")
    with contextlib.suppress(OSError):  # how a pseudo-terminal ends
        while select.select([master], [], [], 60)[0]:
            screen += os.read(master, 4096).decode(errors="replace")
            if answers and answers[0][0] in screen[seen:]:
                seen, (_, answer) = len(screen), answers.pop(0)
                while status.exists() and status.read_text().rpartition(") ")[2][0] in "RD":
                    time.sleep(0.001)  # a signal just before input() begins to wait is kept back until it ends
                if isinstance(answer, signal.Signals):
                    process.send_signal(answer)
                else:
                    os.write(master, (answer(screen) if callable(answer) else answer).encode())
    os.close(master)
    return Ran(process.wait(60), screen, "")


def pasted(change: Callable[[str], str] = str) -> list[tuple[str, Any]]:
    """The answer with what the address bar shows in the end, for the address on the screen."""
    return [
        ("Address: ", lambda screen: change(redirect_of(re.findall(r"http://\S+/connect\?\S+", screen)[-1])) + "\n")
    ]


def test_an_email_and_password_sign_in_within_three_tries(sandbox: Sandbox) -> None:
    env = signed_out(sandbox)
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=[MAIL, WRONG, MAIL, WRONG, MAIL, PASSWORD])
    assert ran.code == 0 and "Google" in ran.out and f"user_upload_token = {TOKEN}" in saved(env).read_text()
    assert ran.out.count("email or password you entered is incorrect") == 2
    assert "sandbox-password" not in ran.out and "wrong word" not in ran.out
    env = signed_out(sandbox)
    ran = on_a_terminal("--login", "-u", "trekker", env=env, answers=[MAIL, PASSWORD])
    assert ran.code == 4 and "account demo, not trekker" in ran.out and not configs(env).exists()
    body = {"error": {"message": "m", "error_user_msg": "wrong: wrong%20word, wrong word"}}  # it says the password back
    sandbox.faults.append(Fault("POST /login", times=3, status=400, body=body))
    ran = on_a_terminal("--login", "-v", "-u", "demo", env=env, answers=[MAIL, WRONG] * 4)
    assert ran.code == 4 and "not signed in" in ran.out and ran.out.count("E-mail") == 3 and not configs(env).exists()
    assert "wrong: " in ran.out and "wrong word" not in ran.out and "wrong%20word" not in ran.out


@pytest.mark.parametrize(("end", "code"), [("\x03", 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_stop_at_the_question_ends_without_a_word_of_saved_work(
    sandbox: Sandbox, folder: Path, end: Any, code: int
) -> None:
    for words in (["--login"], ["-d", folder]):
        ran = on_a_terminal(*words, "-u", "demo", env=signed_out(sandbox), answers=[("E-mail: ", end)])
        assert ran.code == code and "saved" not in ran.out.partition("E-mail")[2] and "Traceback" not in ran.out


def test_a_run_on_a_terminal_offers_to_sign_in_and_goes_on(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    env, words = signed_out(sandbox), ["-d", str(folder), "-u", "demo", "--json"]
    with open(tmp_path / "stdout", "wb") as stdout:  # what a program reads
        ran = on_a_terminal(*words, env=env, answers=[MAIL, PASSWORD], stdout=stdout)
    assert json.loads((tmp_path / "stdout").read_bytes())["exit_code"] == ran.code == 0
    assert "signed in as demo" in ran.out and len(sandbox.published) == 8 and saved(env).exists()


def test_oauth_asks_for_consent_and_keeps_a_token_that_later_runs_renew(sandbox: Sandbox, tmp_path: Path) -> None:
    env = signed_out(sandbox, **APPLICATION, **CALLBACK)
    with open(tmp_path / "stdout", "wb") as stdout:
        ran = on_a_terminal("--login", "-u", "demo", env=env, answers=pasted(), stdout=stdout)
    assert ran.code == 0 and (tmp_path / "stdout").read_bytes() == b""
    kept = saved(env).read_text()
    assert "MAPTokenExpires" in kept and re.search(r"user_upload_token = MLY\|4242\|\w+", kept)
    assert "sandbox-secret" not in ran.out + kept and f"signed in as demo; saved in {saved(env)}" in ran.out
    ran, token = try_to(sandbox, env)
    assert ran.code == 1 and token not in kept and token in saved(env).read_text()


NO_ANSWER = "not the answer to this sign-in"


@pytest.mark.parametrize(
    ("pattern", "instead", "words"),
    [
        ("state=", "state=x", NO_ANSWER),
        ("&state.*", "", NO_ANSWER),
        (r"\?.*", "", NO_ANSWER),
        ("code=[^&]*", "", NO_ANSWER),
        ("code=", "code=x", "Mapillary gives no token"),
        (None, "", "did not allow it: user_denied"),
    ],
)
def test_oauth_says_what_went_wrong(sandbox: Sandbox, pattern: str | None, instead: str, words: str) -> None:
    sandbox.deny = pattern is None
    env, answers = signed_out(sandbox, **APPLICATION, **CALLBACK), pasted(partial(re.sub, pattern or "x", instead))
    ran = on_a_terminal("--login", "-u", "demo", env=env, answers=answers)
    assert ran.code == 4 and words in ran.out and not configs(env).exists()


def test_oauth_needs_the_callback_address(sandbox: Sandbox) -> None:
    ran = on_a_terminal("--login", "-u", "demo", env=signed_out(sandbox, **APPLICATION), answers=[])
    assert ran.code == 2 and "MAPILLARY_REDIRECT_URI" in ran.out


# ---- OAuth from Python, and renewal ----


def test_a_web_application_exchanges_a_code_once_and_renews_the_token(sandbox: Sandbox) -> None:
    service = service_of(sandbox)
    address = mu.authorize_url(OWN, "st=te&", service)
    query = dict(parse_qsl(urlsplit(address).query))
    assert {*query.pop("scope").split()} == {"read", "write", "upload"}
    asked = {"client_id": "4242", "redirect_uri": OWN.redirect_uri, "response_type": "code", "state": "st=te&"}
    assert asked.items() <= query.items()
    assert mu.authorize_url(OWN, "s").startswith("https://www.mapillary.com/connect?")
    back = dict(parse_qsl(urlsplit(redirect_of(address)).query))
    assert back["state"] == "st=te&"
    first = mu.token_from(OWN, back["code"], service)
    who = mu.account_of(first.token, service=service)
    with pytest.raises(mu.SignInError, match="gives no token"):
        mu.token_from(OWN, back["code"], service)
    sandbox.token_lifetime = 86_400
    second = mu.renewed(OWN, replace(first, name="x"), service)
    assert second.name == "x" and second.token != first.token and second.expires > first.expires
    assert mu.account_of(second.token, service=service).user_id == "1001" and who.username == "demo"
    assert OWN.client_secret not in repr(OWN) and first.token not in repr((first, who))
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
    assert TOKEN not in ran.out + ran.err and ("warning" in ran.err or days == 30 or code == 4)


# ---- the token appears nowhere ----


def test_the_token_appears_nowhere(sandbox: Sandbox, folder: Path) -> None:
    said = f"no: {TOKEN} {quote(TOKEN)} {quote(TOKEN).lower()}"  # as it is, and as in an address
    body: Any = {"error": {"message": said}, "debug_info": {"message": said}}
    sandbox.faults.append(Fault("POST /mly", times=2, status=500, body=body))
    sandbox.faults.append(Fault("POST /finish", status=500, body=body))
    sandbox.faults.append(Fault("GET /me", after=1, status=400, body=body))
    told = [upload(folder, sandbox, "-v", "--json") for _ in range(2)]
    left = b"".join(path.read_bytes() for path in folder.glob("*mapillary_uploader*"))
    shown = "".join(ran.out + ran.err for ran in told)
    assert [ran.code for ran in told] == [1, 1] and shown.count("no: [token] [token] [token]") >= 4
    assert "demo-token" not in shown and b"demo-token" not in left
    assert not any("demo-token" in str((request.query, request.path)) for request in sandbox.requests)


@pytest.mark.parametrize("around", [b"%s", b'{"error": {"message": "%s"}}', b"<p>%s</p>", b"<!--%s-->"])
def test_the_token_is_not_shown_where_a_long_message_is_cut_inside_it(sandbox: Sandbox, around: bytes) -> None:
    for before in [*range(75, 101, 3), *range(275, 301, 3), *range(3970, 4001, 5)]:
        for filler in (b"x", b"<i>"):
            said = (filler * before)[:before] + TOKEN.encode() + b"y" * 50
            sandbox.faults = [Fault("GET /me", status=400, body=around.replace(b"%s", said))]
            with pytest.raises(mu.UploaderError) as error:
                mu.account_of(TOKEN, service=service_of(sandbox))
            assert "MLY" not in str(error.value)
