"""The container: its image serves the app and does not run as root, and the compose file asks for what it needs."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import yaml
from browsing import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
DEFAULT_INDEX = re.search(r"^ARG TORCH_INDEX=(.*)$", DOCKERFILE, flags=re.MULTILINE)[1]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def instructions(name: str) -> list[str]:
    """The arguments of an instruction in the last stage."""
    return re.findall(rf"^ *{name} +(.*)$", DOCKERFILE.rpartition("\nFROM ")[2], flags=re.MULTILINE)


def copied() -> list[str]:
    """What is copied from the project into the image."""
    return [source for line in instructions("COPY") if not line.startswith("--from") for source in shlex.split(line)[:-1]]


def test_what_is_copied_into_the_image_serves_the_app_and_the_health_check_sees_it(tmp_path):
    (tmp_path / "app").mkdir()
    for source in copied():
        at = tmp_path / "app" / source
        shutil.copytree(ROOT / source, at) if (ROOT / source).is_dir() else shutil.copy(ROOT / source, at.parent)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program, *arguments = json.loads(instructions("CMD")[-1])
    assert program == "streamlit"
    (check,) = (json.loads(found) for found in re.findall(r"HEALTHCHECK.*?CMD (\[.*\])", DOCKERFILE))
    check = [sys.executable, *(part.replace("8501", port) for part in check[1:])]
    environment = os.environ | {"NEURFLOW_WORKSPACE": str(tmp_path / "data"), "NEURFLOW_ANONYMOUS": "viewer"}
    assert subprocess.run(check, capture_output=True).returncode != 0  # nobody answers yet
    command = [sys.executable, "-m", "streamlit", *arguments, "--server.port", port]
    server = subprocess.Popen(command, cwd=tmp_path / "app", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while subprocess.run(check, capture_output=True).returncode:
            assert server.poll() is None
            assert time.monotonic() < end
    finally:
        server.terminate()
        server.wait(20)


def test_the_build_context_is_what_is_copied_and_no_secret():
    ignored = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {*copied(), "requirements.txt"}
    assert ".streamlit/secrets.toml" in ignored


def test_the_image_does_not_run_as_root_and_keeps_its_workspace_in_a_volume():
    (user,) = instructions("USER")
    assert user.isdecimal()
    assert int(user) > 0
    (volume,) = instructions("VOLUME")
    assert f"NEURFLOW_WORKSPACE={volume}" in DOCKERFILE
    assert any(mount.endswith(f":{volume}") for mount in COMPOSE["services"]["app"]["volumes"])


def test_the_compose_file_publishes_to_this_machine_alone_and_has_no_password_of_its_own():
    app, database = COMPOSE["services"]["app"], COMPOSE["services"]["database"]
    assert all(port.startswith("127.0.0.1:") for port in app["ports"])
    assert app["build"]["args"]["TORCH_INDEX"] == f"${{TORCH_INDEX:-{DEFAULT_INDEX}}}"
    assert "ports" not in database
    assert database["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert "${POSTGRES_PASSWORD:?" in app["environment"]["NEURFLOW_DATABASE_URL"]
    assert app["depends_on"]["database"]["condition"] == "service_healthy"
    assert {mount.split(":")[0] for service in (app, database) for mount in service["volumes"] if mount[0].isalpha()} == set(
        COMPOSE["volumes"]
    )


def test_every_variable_of_the_compose_file_is_one_that_the_app_reads():
    sources = "".join(path.read_text(encoding="utf-8") for folder in ("neurflow_engine", "pages") for path in (ROOT / folder).rglob("*.py"))
    read = set(re.findall(r"[\"'](NEURFLOW_[A-Z_]+|OPENAI_[A-Z_]+)[\"']", sources))
    given = {name for name in COMPOSE["services"]["app"]["environment"] if not name.startswith("STREAMLIT_SERVER_")}
    assert given <= read
    assert len(given) > 5


def test_the_compose_file_s_address_of_the_database_is_understood():
    import sqlalchemy

    given = COMPOSE["services"]["app"]["environment"]["NEURFLOW_DATABASE_URL"]
    url = sqlalchemy.make_url(re.sub(r"\$\{[^}]*\}", "secret1", given))
    assert (url.host, url.username, url.password) == ("database", "neurflow", "secret1")
    assert url.database == COMPOSE["services"]["database"]["environment"]["POSTGRES_DB"]
    assert url.host in COMPOSE["services"]
