"""Promotion happens exactly once: many processes promote the same version, then each its own, over three kinds of registry.

    python -m benchmarks.promotions [sqlite] [postgres] [s3] [--processes 16] [--rounds 20]

1. Kinds: `sqlite` (embedded registry, ledger in a folder), `postgres` (registry in a real PostgreSQL, opened by each process itself,
   ledger in a folder), `s3` (embedded registry, ledger in moto's S3 server, by conditional puts).
2. A round is good if the ledger holds exactly one promotion of each version that was offered, all in one chain; exactly one process
   was told that it wrote each; and the registry's aliases are what the ledger says, without anybody reconciling after.
3. Printed: rounds, bad rounds, entries, refusals because another champion came first (each was measured again), seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import boto3

from components.platform.ledger.entry import CHAMPION, Kind
from tests import postgres
from tests.races import Outcome, Racers

KINDS = ("sqlite", "postgres", "s3")
PROCESSES, ROUNDS = 16, 20
ROOT = Path(__file__).resolve().parents[1]


def measure(kinds: tuple[str, ...] = KINDS, processes: int = PROCESSES, rounds: int = ROUNDS) -> dict[str, float]:
    """Rounds, bad rounds, entries and refusals of each kind."""
    found: dict[str, float] = {}
    for kind in kinds:
        began = time.perf_counter()
        with surroundings(kind) as environment, Racers(processes, environment) as racers:
            for what, wanted in (("same", 1), ("different", processes)):
                outcomes, faults = [], []
                for number in range(rounds):
                    outcomes.append(getattr(racers, what)(f"{what}-{number}"))
                    faults += [fault for fault in [fault_of(outcomes[-1], wanted)] if fault]
                    print(f"{kind} {what} {number + 1}: {faults or 'good'}", file=sys.stderr, flush=True)
                found |= {
                    f"{kind}_{what}_rounds": float(len(outcomes)),
                    f"{kind}_{what}_bad_rounds": float(len(faults)),
                    f"{kind}_{what}_entries": float(sum(len(one.entries) for one in outcomes)),
                    f"{kind}_{what}_refusals": float(sum(told[2] for one in outcomes for told in one.told)),
                }
        found[f"{kind}_seconds"] = time.perf_counter() - began
    return found


def fault_of(outcome: Outcome, wanted: int) -> str:
    """What is wrong with a round of `wanted` versions; empty if nothing is."""
    versions = [entry.version for entry in outcome.entries]
    if sorted(versions, key=int) != [str(number + 1) for number in range(wanted)]:
        return f"versions with an entry are {versions}"
    if any(entry.kind is not Kind.PROMOTION for entry in outcome.entries):
        return f"kinds of entries are {[entry.kind.value for entry in outcome.entries]}"
    writers = sorted(number for number, new, _ in outcome.told if new)
    if writers != list(range(1, wanted + 1)):
        return f"processes say that they wrote the entries {writers}"
    if not outcome.at_rest or outcome.aliases.get(CHAMPION) != versions[-1]:
        return f"the aliases are {outcome.aliases}, the last entry is of version {versions[-1]}"
    return ""


@contextlib.contextmanager
def surroundings(kind: str) -> Iterator[dict[str, str]]:
    """Variables of a new home with a registry and a ledger of that kind; what it needs runs meanwhile."""
    with tempfile.TemporaryDirectory(prefix="promotions-") as name, contextlib.ExitStack() as stack:
        environment = {"BIOVLM_HOME": name, "BIOVLM_RUN_ID": "race", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if kind == "postgres":
            environment["MLFLOW_TRACKING_URI"] = stack.enter_context(postgres.running()).address
        if kind == "s3":
            environment |= stack.enter_context(_s3(Path(name)))
        yield environment


@contextlib.contextmanager
def _s3(home: Path) -> Iterator[dict[str, str]]:
    """A server in a process of its own: threads must not be there when the racers are forked."""
    with (home / "moto.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "tests.s3"], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update(keys)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="ledger")
        yield {**keys, "AWS_ENDPOINT_URL_S3": address, "BIOVLM_LEDGER": "s3://ledger/team"}
    finally:
        server.kill()
        server.wait()


def main() -> int:
    """Measure what is asked for; 1 if a round was bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []])
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    found = measure(tuple(asked.kinds) or KINDS, asked.processes, asked.rounds)
    for name, value in found.items():
        print(f"{name:<40} {value:>10,.0f}")
    return int(any(value for name, value in found.items() if name.endswith("bad_rounds")))


if __name__ == "__main__":
    sys.exit(main())
