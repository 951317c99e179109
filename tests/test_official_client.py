"""The official client against the sandbox: the sandbox speaks what real clients speak, and we send what they accept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema

from sandbox import Sandbox
from support import environment, upload

TOKEN = "user_upload_token = MLY|sandbox|demo-token"


def test_mapillary_tools_uploads_to_the_sandbox(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(f"[demo]\n{TOKEN}\nMAPSettingsUserKey = 1001\nMAPSettingsUsername = demo\n")
    places = {"MAPILLARY_UPLOAD_HISTORY_PATH": "history", "MAPILLARY_TOOLS_UPLOAD_CACHE_DIR": "cache"}
    env = environment(sandbox, **{name: str(tmp_path / place) for name, place in places.items()})
    env |= {"MAPILLARY_CONFIG_PATH": str(tmp_path / "config"), "MAPILLARY_TOOLS_PROMPT_DISABLED": "YES"}
    program = [sys.executable, "-c", "from mapillary_tools.commands.__main__ import main; main()"]
    command = [
        *program,
        "process_and_upload",
        "--user_name",
        "demo",
        "--desc_path",
        str(tmp_path / "d.json"),
        str(folder),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [len(cluster.photos) for cluster in sandbox.clusters] == [8] and sandbox.corrupt == []


def test_what_we_send_passes_the_official_clients_schema_and_reader(
    sandbox: Sandbox, folder: Path, tmp_path: Path
) -> None:
    from mapillary_tools.exif_read import ExifRead
    from mapillary_tools.serializer.description import ImageDescriptionEXIFSchema

    assert upload(folder, sandbox, "--output", str(tmp_path / "out")).code == 0
    for photo in sandbox.clusters[0].photos:
        jsonschema.validate(photo.description, ImageDescriptionEXIFSchema)
        reader = ExifRead(tmp_path / "out" / photo.description["MAPFilename"])
        assert reader.extract_make() == "Sample"


def test_our_profile_reading_matches_the_official_clients(sandbox: Sandbox, folder: Path, tmp_path: Path) -> None:
    from mapillary_tools import config

    config.update_config("demo", {"user_upload_token": "MLY|sandbox|demo-token"}, str(tmp_path / "config"))
    env = {"MAPILLARY_CONFIG_PATH": str(tmp_path / "config"), "MAPILLARY_ACCESS_TOKEN": ""}
    assert upload(folder, sandbox, env=env).code == 0
