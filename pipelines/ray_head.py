"""A Ray head in the train image, on this machine, as a run in containers has it (containers.py): the cluster of an address.

1. `secret` draws the run's token, in a file that only containers of the run get to see.
2. `running` starts the head and waits until its Jobs API answers. Values of variables reach docker by its own environment, so no list
   of processes shows them.
3. The container ends when its input closes: with this process, however that ends.

Ray takes the loopback address for the machine's own, so its ports can be reached from outside: the token is what guards them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from components.platform import launch
from components.platform.settings import Settings
from model.errors import InternalError
from pipelines.grounds import HOST, free_port

TRAIN = "biovlm-train:latest"
USER = "10001:0"
"""Who a container is where this process is root; else it is who this process is."""
RUN_LABEL, OWNER_LABEL = "io.biovlm.run", "io.biovlm.owner"
TOKEN = "/run/ray/token"
"""Where the head finds the token."""
PORTS = (
    "--port",
    "--ray-client-server-port",
    "--metrics-export-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
)
"""Each of these has a number by default, and another Ray of this machine may have it."""
START_SECONDS = 300.0
STOP_SECONDS = 20.0


def user(uid: int, gid: int) -> str:
    """Who a container is: never root."""
    return USER if uid == 0 else f"{uid}:{gid}"


def labelled(run_id: str) -> dict[str, str]:
    """Labels of every container of a run: whose it is, and which process started it."""
    return {RUN_LABEL: run_id, OWNER_LABEL: str(os.getpid())}


def secret(path: Path) -> Path:
    """Draw a token into the file at `path`, which must not exist yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(secrets.token_hex(32))
    give(path)
    return path


def give(*paths: Path) -> None:
    """Make containers the owner, where they are not this process's own user anyway."""
    if os.geteuid() == 0:
        owner, _, group = USER.partition(":")
        for path in paths:
            os.chown(path, int(owner), int(group))


@contextlib.contextmanager
def running(settings: Settings, cpus: int, reach: Mapping[str, str], token: Path) -> Iterator[str]:
    """Inside, a Ray head runs in the train image; gives the address of its Jobs API.

    Args:
        settings: Of the run.
        cpus: How many CPUs Ray must believe in.
        reach: Variables that lead its workers to the store.
        token: File that `secret` wrote.

    Raises:
        InternalError: It did not start.
    """
    dashboard = free_port()
    options = {"--node-ip-address": HOST, "--dashboard-host": HOST, "--dashboard-port": dashboard, "--num-cpus": cpus}
    options |= {"--object-store-memory": launch.OBJECT_STORE_BYTES, **{option: free_port() for option in PORTS}}
    start = " ".join(("ray start --head --disable-usage-stats", *(f"{name} {value}" for name, value in options.items())))
    environment = {**reach, **launch.QUIET, "RAY_AUTH_TOKEN_PATH": TOKEN, launch.NOTICE: "1"}
    command = head_command(settings.run_id, user(os.geteuid(), os.getegid()), sorted(environment), token)
    with (settings.run_folder / "ray-head.log").open("ab") as log:
        head = subprocess.Popen(
            (*command, "sh", "-c", f"{start} && cat > /dev/null"),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        address = f"http://{HOST}:{dashboard}"
        _wait_for(address, token.read_text(encoding="utf-8"), head, settings.run_folder / "ray-head.log")
        yield address
    finally:
        if head.stdin:
            head.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(timeout=STOP_SECONDS)


def head_command(run_id: str, who: str, names: list[str], token: Path) -> tuple[str, ...]:
    """How docker starts the head; values of the variables `names` come from its own environment."""
    labels = (part for key, value in labelled(run_id).items() for part in ("--label", f"{key}={value}"))
    return (
        *("docker", "run", "--rm", "--interactive", "--init", "--network", "host", "--user", who, "--read-only"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--shm-size", "512m", *labels),
        *("--mount", f"type=bind,source={token},target={TOKEN},readonly"),
        *(part for name in names for part in ("--env", name)),
        TRAIN,
    )


def _wait_for(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5):
            return
        if head.poll() is not None or time.monotonic() > deadline:
            raise InternalError("the Ray head did not start", f"see {log}")
        time.sleep(0.5)
