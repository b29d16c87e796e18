"""What stands beside a run in containers, as on a cluster: PostgreSQL, MLflow's server over it, and an S3 server.

1. `lay` starts them on free ports of the loopback interface, each after what it needs, and gives the environment variables that let
   a step find them, and a function that waits until all answer. Passwords are made for this one run.
2. Each is a child that the kernel ends when this process dies, however it dies; on leaving they end in reverse order.

The S3 server is moto's, in memory: what a run put there is gone with it, but for what the local store has fetched. It does not prove
what only a real one shows: throttling, eventual failures, policies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import InternalError, MissingInputError
from pipelines.children import bound

HOST = "127.0.0.1"
BUCKET = "biovlm"
START_SECONDS = 300.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 60.0
FIRST_QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
"""MLflow says that it is healthy before it has made its tables, and makes them for the first who asks anything else."""
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Five processes for evaluations by language models, which nothing here asks for."""
POSTGRES_BINARIES = Path("/usr/lib/postgresql")
POSTGRES_USER = "postgres"
"""Whom root becomes: PostgreSQL refuses to run as root. Debian's package brings this user."""
NEEDED = ("moto", "psycopg2", "mlflow")


@dataclass(frozen=True)
class Service:
    """A program that runs as long as a run."""

    name: str
    command: tuple[str, ...]
    answers: Callable[[], bool]
    environment: Mapping[str, str]
    end_with: signal.Signals = signal.SIGTERM
    user: str | None = None


@contextlib.contextmanager
def lay(logs: Path) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
    """Inside, the servers run; gives the environment variables that lead to them, and what waits until all of them answer.

    Args:
        logs: Folder for what they say.

    Raises:
        MissingInputError: A program or library that they need is not installed.
        InternalError: One of them did not start.
    """
    binaries = check()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder())
        s3 = f"http://{HOST}:{free_port()}"
        key = {"AWS_ACCESS_KEY_ID": "biovlm", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16), "AWS_DEFAULT_REGION": "us-east-1"}
        reach = {**key, "AWS_ENDPOINT_URL": s3, "MLFLOW_S3_ENDPOINT_URL": s3}
        objects = stack.enter_context(running(_s3(s3), logs))
        database, service = _postgres(binaries, folder)
        stack.enter_context(running(service, logs))()
        tracking = f"http://{HOST}:{free_port()}"
        mlflow = stack.enter_context(running(_mlflow(tracking, database, reach), logs))

        def wait() -> None:
            objects()
            urllib.request.urlopen(urllib.request.Request(f"{s3}/{BUCKET}", method="PUT"), timeout=10).close()
            mlflow()

        addresses = {"BIOVLM_STORE": f"s3://{BUCKET}/store", "BIOVLM_CHECKPOINTS": f"s3://{BUCKET}/checkpoints"}
        yield {**reach, **addresses, "MLFLOW_TRACKING_URI": tracking}, wait


def check() -> Path:
    """The folder of PostgreSQL's programs. MissingInputError says what is missing, all of it."""
    found = sorted(POSTGRES_BINARIES.glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    missing += [] if found or on_path else ["PostgreSQL"]
    missing += [] if shutil.which("setpriv") else ["setpriv (util-linux)"]
    if missing:
        raise MissingInputError(
            f"not installed: {', '.join(missing)}", "apt-get install postgresql; pip install 'biovlm[platform,dev]'"
        )
    return Path(on_path).resolve().parent if on_path else found[-1].parent


@contextlib.contextmanager
def running(service: Service, logs: Path) -> Iterator[Callable[[], None]]:
    """Inside, the service runs; gives what waits until it answers. InternalError, from there: it does not."""
    path = logs / f"{service.name}.log"
    with path.open("ab") as out:
        process = subprocess.Popen(
            (*_bound(service), *service.command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(service.environment)
        )
    deadline = time.monotonic() + START_SECONDS

    def wait() -> None:
        while not service.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise InternalError(f"{service.name} did not start", f"see {path}")
            time.sleep(0.2)

    try:
        yield wait
    finally:
        process.send_signal(service.end_with)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _bound(service: Service) -> tuple[str, ...]:
    """What makes a program end with this process and, where asked, run as another user."""
    end = bound(service.end_with)
    if service.user is None:
        return end
    return (*end, "--reuid", service.user, "--regid", service.user, "--clear-groups")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that PostgreSQL may own; in /tmp, for its socket's path has 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="bv-pg-", dir="/tmp"))
    try:
        if user := _server_user():
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server_user() -> str | None:
    return POSTGRES_USER if os.geteuid() == 0 else None


def _postgres(binaries: Path, folder: Path) -> tuple[str, Service]:
    """The database's address and its server, with an empty cluster already laid down in `folder`."""
    port, password, user = free_port(), secrets.token_hex(16), _server_user()
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
    secret, data = folder / "password", folder / "data"
    initdb = f"{binaries}/initdb -D {data} -U biovlm -A scram-sha-256 --pwfile {secret} -E UTF8"
    made = subprocess.run(
        ("sh", "-c", f"umask 077; cat > {secret} && {initdb}"),
        input=password,
        text=True,
        capture_output=True,
        check=False,
        user=user,
        group=user,
        env=environment,
        cwd=folder,
    )
    if made.returncode:
        raise InternalError(f"PostgreSQL's initdb failed: {made.stderr.strip()[-300:]}", "see whether /tmp has room")
    where = ("-D", str(data), "-h", HOST, "-p", str(port), "-k", str(folder), "-c", "fsync=off")
    ready = (str(binaries / "pg_isready"), "--quiet", "-h", HOST, "-p", str(port))
    service = Service(
        name="postgres",
        command=(str(binaries / "postgres"), *where),
        answers=lambda: subprocess.run(ready, check=False).returncode == 0,
        environment=environment,
        end_with=signal.SIGINT,  # ends at once; SIGTERM would wait for MLflow to hang up
        user=user,
    )
    return f"postgresql+psycopg2://biovlm:{password}@{HOST}:{port}/postgres", service


def _s3(address: str) -> Service:
    port = address.rpartition(":")[2]
    command = (sys.executable, "-m", "moto.server", "-H", HOST, "-p", port)
    return Service("s3", command, lambda: _says_yes(f"{address}/moto-api/"), dict(os.environ))


def _mlflow(address: str, database: str, reach: Mapping[str, str]) -> Service:
    """The address of the database is a secret, so it is told by the environment and not in the list of processes."""
    told = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_DISABLE_TELEMETRY": "true", **NO_JOBS}
    where = ("--host", HOST, "--port", address.rpartition(":")[2], "--workers", "1")
    artifacts = ("--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow")
    command = (sys.executable, "-m", "mlflow", "server", *where, *artifacts)
    environment = {**os.environ, **reach, **told}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return Service("mlflow", command, lambda: _says_yes(f"{address}{FIRST_QUESTION}"), environment)


def _says_yes(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """A port that is free now. Another program may take it before the server does; then that one says so and the run ends."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
