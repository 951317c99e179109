"""Profiles that stand in another file, names that no profile can have, and secrets that a server says back."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.parse import quote

import pytest
import requests

import factory
import mapillary_uploader as mu
from sandbox import Fault, Sandbox
from support import environment, run, upload

APPLICATION = {"MAPILLARY_CLIENT_ID": "4242", "MAPILLARY_CLIENT_SECRET": "sandbox-secret"}


def signed_in(sandbox: Sandbox, expires: str, file: str = "MLY_0") -> dict[str, str]:
    """The environment of a cron job whose only token stands in one of the official client's files."""
    env = environment(sandbox, **APPLICATION)
    del env["MAPILLARY_ACCESS_TOKEN"]
    path = mu.config_folder(env) / file
    path.parent.mkdir(parents=True)
    path.write_text(f"[demo]\nuser_upload_token = {sandbox.accounts[0].token}\nMAPTokenExpires = {expires}\n")
    path.chmod(0o600)
    return env


def test_a_renewed_token_goes_back_to_the_file_that_the_old_one_came_from(sandbox: Sandbox, folder: Path) -> None:
    sandbox.token_lifetime = 60 * 24 * 3600
    env = signed_in(sandbox, "2020-01-01T00:00:00.000Z")
    for _ in range(2):
        assert run("-d", folder, "-u", "demo", env=env).code == 0
    assert [request.path for request in sandbox.requests].count("/token") == 1


def test_a_renewed_token_that_cannot_be_saved_serves_the_run_and_is_left_nowhere(
    sandbox: Sandbox, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = signed_in(sandbox, "2020-01-01T00:00:00.000Z")
    replaced = os.replace

    def full(source: Path, target: Path) -> None:
        if "MLY_0" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert mu.program(mu.Options(directory=folder, username="demo"), env, mu.Clock()) == 0
    assert [path.name for path in mu.config_folder(env).iterdir()] == ["MLY_0"]


def test_a_broken_profile_file_is_warned_of_and_keeps_no_other_profile_from_being_found(
    sandbox: Sandbox, folder: Path
) -> None:
    env = signed_in(sandbox, "")
    (mu.config_folder(env) / "MLY_a").write_text("no INI")
    result = run("-d", folder, "-u", "demo", env=env)
    assert result.code == 0 and "MLY_a can't be read" in result.err


def test_recursive_signs_in_once_with_output_too(sandbox: Sandbox, tmp_path: Path) -> None:
    for number in range(2):
        photos = factory.tour(1, sequence_id=f"S{number}", latitude=50 + number)
        factory.write_tour(tmp_path / "tours" / str(number), photos)
    result = upload(tmp_path / "tours", sandbox, "-r", "--output", str(tmp_path / "out"))
    assert result.code == 0 and [request.path for request in sandbox.requests].count("/me") == 1
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.jpg")) == ["0", "1"]


def test_a_name_that_would_break_the_profile_file_is_refused(sandbox: Sandbox) -> None:
    env = environment(sandbox)
    assert run("--login", "-u", "demo", env=env).code == 0
    before = mu.config_path(env).read_bytes()
    assert run("--login", "-u", "two\nlines", env=env).code == mu.Exit.SIGN_IN
    assert mu.config_path(env).read_bytes() == before


@pytest.mark.parametrize("encoded", [str, lambda token: quote(token, safe="")], ids=["as it is", "as in an address"])
def test_a_token_that_the_server_says_back_is_not_shown(sandbox: Sandbox, folder: Path, encoded: type[str]) -> None:
    sandbox.faults.append(
        Fault("GET /me", status=400, body={"error": {"message": f"no: {encoded(sandbox.accounts[0].token)}"}})
    )
    result = upload(folder, sandbox, "-v")
    assert "no: [token]" in result.err and "demo-token" not in result.out + result.err


@pytest.mark.parametrize("before", range(70, 110))
def test_a_token_is_not_shown_where_a_long_message_is_cut_inside_it(before: int) -> None:
    answer = requests.Response()
    answer.status_code, answer._content = 400, b"x" * before + b"MLY|sandbox|demo-token" + b"y" * 50
    assert "MLY|" not in mu.server_message(answer, ["MLY|sandbox|demo-token"])


def test_an_old_token_that_the_server_says_back_when_it_is_renewed_is_not_shown(sandbox: Sandbox, folder: Path) -> None:
    token = sandbox.accounts[0].token
    sandbox.faults.append(Fault("POST /token", status=400, body={"error": {"message": f"no: {token}"}}))
    result = run("-v", "-d", folder, "-u", "demo", env=signed_in(sandbox, "2020-01-01T00:00:00.000Z"))
    assert result.code == mu.Exit.SIGN_IN and "could not be renewed" in result.err
    assert "no: [token]" in result.err and token not in result.out + result.err
