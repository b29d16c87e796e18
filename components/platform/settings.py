"""Every environment variable of biovlm, and the folders that follow from them.

1. A door calls `Settings.from_environment()` once, when it starts to act; nothing is read at import time.
2. Folders are derived from `home`; none is created here: who writes into one makes it.
3. `for_children()` says the same in environment variables, so that KFP's tasks and Ray's workers see what their parent saw.

| variable | meaning | default |
|---|---|---|
| BIOVLM_HOME | everything biovlm keeps | `.biovlm` in the checkout, else in the current folder |
| BIOVLM_RUN_ID | the pipeline run that a process belongs to; in a pod of a pipeline, BIOVLM_KFP_RUN_ID says it | `adhoc` |
| BIOVLM_EVENTS | the event log of that run | `runs/<run id>/events.jsonl` |
| BIOVLM_RAY | a file with the address of the run's Ray; without it a step starts its own | none |
| BIOVLM_MIRRORED | `1`: another process of the run copies events to MLflow; else each step does it when it ends | `0` |
| BIOVLM_CHECKPOINTS | `s3://BUCKET/PREFIX` for checkpoints of unfinished stages: any node goes on from there | in `home` |
| BIOVLM_STORE | `s3://BUCKET/PREFIX` of artifacts shared by steps on different machines; `store` in the home is its cache | none |
| BIOVLM_DATA | URL of the Git repository that is the data registry, whose DVC remote all can read; only read from | in `home` |
| BIOVLM_DVC_REMOTE | DVC remote of the registry that is written here, `s3://BUCKET/PREFIX` or a folder | `dvc-remote` in `home` |
| BIOVLM_LEDGER | `s3://BUCKET/PREFIX` of the ledger of promotions, such as a bucket that locks objects | in the store, else `home` |
| BIOVLM_ACTOR | who acts, in the ledger; without a key it is a claim | the login's name |
| BIOVLM_ACTOR_KEY | file of one's own Ed25519 key, which proves who acts | none |
| BIOVLM_APPROVERS | folder of public keys `NAME.pem`: who may approve promotions | none |
| BIOVLM_NOTIFY_FILE | file that gets a CloudEvent, one a line, for each entry of the ledger | none |
| BIOVLM_NOTIFY_WEBHOOK | address that each of those is posted to; may hold a secret, and is never shown | none |
| BIOVLM_LAUNCHER | where heavy work runs: `process` (Ray on this machine), `jobs` (a cluster by address) or `kuberay` | `process` |
| BIOVLM_RAY_ADDRESS | `http://HOST:8265` of that cluster; it alone means `jobs`. Ray reads its token (RAY_AUTH_TOKEN_PATH) | none |
| BIOVLM_RECIPE | name of the run's recipe, for the labels of jobs on a cluster | `unknown` |
| BIOVLM_POOLS | file of the site's pools of machines (components/platform/pools.py) | `components/platform/pools.yaml` |
| BIOVLM_TASK_CONFIG | what KFP passed on to the Ray workers; written by the steps themselves | none |
| KF_PIPELINES_ENDPOINT | address of the Kubeflow server, for the commands that talk to it (components/platform/addresses.py) | none |
| KF_PIPELINES_SA_TOKEN_PATH | file with the token for it, read anew for each request | no token |
| REQUESTS_CA_BUNDLE | file with the certificates of your own authority | the public ones |
| BIOVLM_KFP_NAMESPACE | namespace of the profile, where that server has many users | none |
| BIOVLM_NAMESPACE | namespace of the Ray jobs; in a pod of a pipeline, its own | `biovlm` for commands; KubeRay needs it |
| BIOVLM_KFP_TIME_ZONE | zone in which that server reads cron expressions (its CRON_SCHEDULE_TIMEZONE) | `UTC` |
| BIOVLM_LAUNCHER_IMAGE, BIOVLM_TRAIN_IMAGE | images of a cluster by digest, `REGISTRY/NAME@sha256:...` | none; a cluster needs both |
| BIOVLM_FEATURE_CACHE_GIB | most that features of images may take in `cache/features` of the home; `0` keeps none on disk | `20` |
| BIOVLM_TEAM, BIOVLM_COST_CENTRE | who pays, in labels | none, KubeRay needs it; `none` |
| BIOVLM_RAY_SECRETS | Secrets whose keys become variables of the Ray pods, with commas | none |
| BIOVLM_RAY_ENVIRONMENT | names of variables that Ray pods get as they are here, with commas; no secrets | none |
| BIOVLM_RAY_SUBMISSION | `HTTPMode`, or `SidecarMode` where the namespace does not enforce restricted Pod Security | `HTTPMode` |
| BIOVLM_POD_NAME, BIOVLM_POD_UID | the launcher's own pod (downward API), owner of its RayJobs; a pod makes no key for itself | none |
| BIOVLM_RAY_STORAGE | set in Ray pods: where Ray Train keeps its notes about a run, which all nodes must reach | scratch folder |
| BIOVLM_TRIES_BEFORE | set in Ray pods: how often the work was tried before, over all layers | `0` |
| BIOVLM_SIGNING | `off` signs and verifies nothing, which the lineage of each version then says | `on` |
| BIOVLM_SIGNING_KEY | PEM file with the private ECDSA key that signs | made in `keys` of `home` |
| BIOVLM_SIGNER | PEM file with the public half of it, for a pod that asks before a run whether the two fit and signs nothing | none |
| BIOVLM_TRUSTED_KEYS | PEM file, or folder of them, with the public keys whose signatures are believed | that of the signing key |
| BIOVLM_SIGNING_KEY_PEM, BIOVLM_SIGNER_PEM, BIOVLM_TRUSTED_KEYS_PEM | in a pod, those keys themselves: door.py makes files of them | none |
| BIOVLM_SERVE_ROOT | folder from which a served model may read images by path | none: base64 only |
| BIOVLM_APPROVED_GATES | file with the approved gates | `components/platform/approved_gates.yaml` |
| BIOVLM_TRIGGER | who or what began the run: `person:NAME`, `schedule:NAME`, `ci:NAME`, `kubeflow` | `ci` if CI is `true`, else `person` |
| BIOVLM_TRACE | `1`: traces of unexpected errors show the error's text, which may quote a record | `0` |
| MLFLOW_TRACKING_URI | tracking store and model registry | SQLite in `home` |
| MLFLOW_EXPERIMENT_NAME | experiment of all runs | `biovlm` |
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import ConfigError

FEATURE_CACHE_GIB = 20.0
CI = "ci"
LAUNCHERS = ("process", "jobs", "kuberay")
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Settings:
    """What the environment says, resolved."""

    home: Path
    run_id: str
    events: Path
    tracking_uri: str
    experiment: str
    ray_address_file: Path | None = None
    checkpoints: str = ""
    shared_store: str = ""
    data_url: str = ""
    dvc_remote_url: str = ""
    launcher: str = "process"
    ray_address: str = ""
    recipe: str = "unknown"
    trigger: str = ""
    mirrored: bool = False
    trace: bool = False
    feature_cache_gib: float = FEATURE_CACHE_GIB
    pools: Path | None = None
    ray_storage: str = ""
    tries_before: int = 0
    ledger: str = ""
    actor: str = ""
    actor_key: Path | None = None
    approvers: Path | None = None
    notify_file: Path | None = None
    notify_webhook: str = ""
    signing: bool = True
    signing_key: Path | None = None
    trusted_keys: Path | None = None
    signer: Path | None = None
    pod: str = ""
    serve_root: Path | None = None
    approved_gates: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables of the table above from `environment` (default: this process's)."""
        env = os.environ if environment is None else environment
        home = Path(env.get("BIOVLM_HOME") or _default_home()).expanduser().absolute()
        run_id = env.get("BIOVLM_RUN_ID") or env.get("BIOVLM_KFP_RUN_ID") or "adhoc"
        return cls(
            home=home,
            run_id=run_id,
            events=Path(env.get("BIOVLM_EVENTS") or home / "runs" / run_id / "events.jsonl"),
            tracking_uri=env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
            experiment=env.get("MLFLOW_EXPERIMENT_NAME") or "biovlm",
            ray_address_file=Path(env["BIOVLM_RAY"]) if env.get("BIOVLM_RAY") else None,
            checkpoints=env.get("BIOVLM_CHECKPOINTS", ""),
            shared_store=env.get("BIOVLM_STORE", ""),
            data_url=env.get("BIOVLM_DATA", ""),
            dvc_remote_url=env.get("BIOVLM_DVC_REMOTE", ""),
            launcher=_launcher(env),
            ray_address=env.get("BIOVLM_RAY_ADDRESS", ""),
            recipe=env.get("BIOVLM_RECIPE") or "unknown",
            trigger=env.get("BIOVLM_TRIGGER") or (CI if env.get("CI", "").lower() in ("1", "true") else ""),
            pools=Path(env["BIOVLM_POOLS"]) if env.get("BIOVLM_POOLS") else None,
            ray_storage=env.get("BIOVLM_RAY_STORAGE", ""),
            tries_before=_count(env.get("BIOVLM_TRIES_BEFORE") or "0"),
            mirrored=env.get("BIOVLM_MIRRORED") == "1",
            trace=env.get("BIOVLM_TRACE") == "1",
            feature_cache_gib=_gib(env.get("BIOVLM_FEATURE_CACHE_GIB") or str(FEATURE_CACHE_GIB)),
            ledger=env.get("BIOVLM_LEDGER", ""),
            actor=env.get("BIOVLM_ACTOR", ""),
            actor_key=_path(env, "BIOVLM_ACTOR_KEY"),
            approvers=_path(env, "BIOVLM_APPROVERS"),
            notify_file=_path(env, "BIOVLM_NOTIFY_FILE"),
            notify_webhook=env.get("BIOVLM_NOTIFY_WEBHOOK", ""),
            signing=_signing(env.get("BIOVLM_SIGNING") or "on"),
            signing_key=_path(env, "BIOVLM_SIGNING_KEY"),
            trusted_keys=_path(env, "BIOVLM_TRUSTED_KEYS"),
            signer=_path(env, "BIOVLM_SIGNER"),
            pod=env.get("BIOVLM_POD_NAME", ""),
            serve_root=_path(env, "BIOVLM_SERVE_ROOT"),
            approved_gates=_path(env, "BIOVLM_APPROVED_GATES"),
        )

    def for_children(self) -> dict[str, str]:
        """The variables that make a child process see these settings."""
        return {
            "BIOVLM_HOME": str(self.home),
            "BIOVLM_RUN_ID": self.run_id,
            "BIOVLM_EVENTS": str(self.events),
            "BIOVLM_RAY": str(self.ray_address_file or ""),
            "BIOVLM_CHECKPOINTS": self.checkpoints,
            "BIOVLM_STORE": self.shared_store,
            "BIOVLM_DATA": self.data_url,
            "BIOVLM_DVC_REMOTE": self.dvc_remote_url,
            "BIOVLM_LAUNCHER": self.launcher,
            "BIOVLM_RAY_ADDRESS": self.ray_address,
            "BIOVLM_RECIPE": self.recipe,
            "BIOVLM_TRIGGER": self.trigger,
            "BIOVLM_POOLS": str(self.pools or ""),
            "BIOVLM_MIRRORED": "1" if self.mirrored else "0",
            "BIOVLM_TRACE": "1" if self.trace else "0",
            "BIOVLM_FEATURE_CACHE_GIB": str(self.feature_cache_gib),
            "BIOVLM_LEDGER": self.ledger,
            "BIOVLM_ACTOR": self.actor,
            "BIOVLM_ACTOR_KEY": str(self.actor_key or ""),
            "BIOVLM_APPROVERS": str(self.approvers or ""),
            "BIOVLM_NOTIFY_FILE": str(self.notify_file or ""),
            "BIOVLM_NOTIFY_WEBHOOK": self.notify_webhook,
            "BIOVLM_SIGNING": "on" if self.signing else "off",
            "BIOVLM_SIGNING_KEY": str(self.signing_key or ""),
            "BIOVLM_TRUSTED_KEYS": str(self.trusted_keys or ""),
            "BIOVLM_SIGNER": str(self.signer or ""),
            "BIOVLM_SERVE_ROOT": str(self.serve_root or ""),
            "BIOVLM_APPROVED_GATES": str(self.approved_gates or ""),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment,
        }

    @property
    def store(self) -> Path:
        """Artifacts."""
        return self.home / "store"

    @property
    def feature_cache(self) -> Path:
        """Features of images from frozen towers, shared by all stages and evaluations."""
        return self.home / "cache" / "features"

    @property
    def feature_cache_bytes(self) -> int:
        """The most that folder may hold."""
        return int(self.feature_cache_gib * 2**30)

    @property
    def data_registry(self) -> Path:
        """The data registry: a Git + DVC repository of its own."""
        return self.home / "data"

    @property
    def dvc_remote(self) -> Path:
        """The data registry's remote."""
        return self.home / "dvc-remote"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where the embedded tracking store keeps files."""
        return self.home / "mlflow-artifacts"

    @property
    def run_folder(self) -> Path:
        """What this run writes beside the store: events, KFP's log, the report."""
        return self.home / "runs" / self.run_id

    @property
    def recipe_file(self) -> Path:
        """The complete recipe of this run, as JSON."""
        return self.run_folder / "recipe.json"


def _launcher(env: Mapping[str, str]) -> str:
    """Where heavy work runs. ConfigError: an unknown place, or one that lacks what it needs."""
    address, store = env.get("BIOVLM_RAY_ADDRESS", ""), env.get("BIOVLM_STORE", "")
    chosen = env.get("BIOVLM_LAUNCHER") or ("jobs" if address else "process")
    if chosen not in LAUNCHERS:
        raise ConfigError(f"BIOVLM_LAUNCHER is {chosen!r}", f"give one of {', '.join(LAUNCHERS)}")
    if chosen == "jobs" and not address.startswith(("http://", "https://")):
        raise ConfigError(f"BIOVLM_RAY_ADDRESS is {address!r}", "give the address of the cluster's Jobs API: http://HOST:8265")
    if chosen != "process" and not store:
        raise ConfigError(
            f"BIOVLM_LAUNCHER is {chosen}, and there is no BIOVLM_STORE", "machines share what they make by s3://BUCKET/PREFIX"
        )
    return chosen


def _signing(text: str) -> bool:
    """Off only by the word for it."""
    if text not in ("on", "off"):
        raise ConfigError(f"BIOVLM_SIGNING is {text!r}", "give on or off")
    return text == "on"


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]).expanduser().absolute() if env.get(name) else None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"BIOVLM_TRIES_BEFORE is {text!r}", "leave it to the launcher of a Ray job, which gives a whole number")
    return int(text)


def _gib(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"BIOVLM_FEATURE_CACHE_GIB is {text!r}", "give a number of GiB, 0 for no cache on disk")
    return number


def _default_home() -> Path:
    """`.biovlm` beside the code when it runs from a checkout; an installed package must not write into site-packages."""
    return (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()) / ".biovlm"
