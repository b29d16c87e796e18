"""Rules for the steps of a compiled pipeline.

KFP's server makes their pods. It sets allowPrivilegeEscalation, capabilities and seccomp by itself, cannot set a read-only root, and its
own container in the same pod needs the account's token. Limits come from the namespace's LimitRange (rule `limits-by-default`). So what
a compiled pipeline can say, and what is asked here, is the rest. The committed file serves every registry: only a release names digests.
"""

from __future__ import annotations

from collections.abc import Iterator

from infra.policy.documents import Step, at
from infra.policy.pods import DIGEST
from infra.policy.rule import Fault, Rule
from infra.policy.secrets import secret_in_env, secret_in_words

MOST_RETRIES = 2
"""Three attempts in all."""
NEVER_CACHED = ("preflight", "register", "promote")
"""They read or change what stands outside the pipeline: the present champion, the registry, the alias."""


SIGNING, PUBLIC_HALF = "biovlm-signing", "signing.pub"
SIGN = ("evaluate", "champion", "register")
"""They make what is signed: reports, exports, receipts."""


def step_non_root(step: Step) -> Iterator[Fault]:
    """A user by number."""
    context = step.pod.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot", "is not true"
    if not str(context.get("runAsUser", "")).isdigit() or int(context["runAsUser"]) == 0:
        yield "securityContext.runAsUser", f"is {context.get('runAsUser')}, not a number above 0"


def step_without_gpu(step: Step) -> Iterator[Fault]:
    """A step waits for its Ray job: what it asks of a GPU goes there."""
    asks = (step.container.get("resources") or {}).get("accelerator")
    if asks and "RESOURCES" not in step.passed_on:
        yield "container.resources.accelerator", "gives a GPU to the pod that only waits"


def step_by_digest(step: Step) -> Iterator[Fault]:
    """An image is named by what is in it."""
    if not DIGEST.match(str(step.container.get("image", ""))):
        yield "container.image", f"{step.container.get('image')!r} has no digest"


def step_deadline(step: Step) -> Iterator[Fault]:
    """A step has an end."""
    if not str(step.pod.get("activeDeadlineSeconds", "")).isdigit():
        yield "activeDeadlineSeconds", "is missing"


def step_retries(step: Step) -> Iterator[Fault]:
    """Layers multiply: this one adds two attempts at most."""
    most = at(step.task, "retryPolicy.maxRetryCount") or 0
    if int(most) > MOST_RETRIES:
        yield "retryPolicy.maxRetryCount", f"is {most}"


def gates_uncached(step: Step) -> Iterator[Fault]:
    """A decision is taken anew."""
    if step.name in NEVER_CACHED and at(step.task, "cachingOptions.enableCache"):
        yield "cachingOptions.enableCache", "is true"


def key_where_it_signs(step: Step) -> Iterator[Fault]:
    """The private key goes to the steps that sign; nothing mounts it, since KFP gives what a heavy step mounts to its workers."""
    for entry in step.pod.get("secretAsEnv") or []:
        keys = {key.get("secretKey") for key in entry.get("keyToEnv") or []}
        if entry.get("secretName") == SIGNING and keys - {PUBLIC_HALF} and step.name not in SIGN:
            yield "secretAsEnv", f"gives {SIGNING} to {step.name}, which signs nothing"
    for entry in step.pod.get("secretAsVolume") or []:
        if entry.get("secretName") == SIGNING:
            yield "secretAsVolume", f"mounts {SIGNING}"


def step_secrets(step: Step) -> Iterator[Fault]:
    """No secret by value."""
    yield from (("container.env", what) for what in secret_in_env(step.container.get("env") or []))
    words = [*(step.container.get("args") or []), *(step.container.get("command") or [])]
    yield from (("container.command", what) for what in secret_in_words(words))


RULES = (
    Rule(
        "step-non-root",
        "step",
        "the restricted profile of Pod Security",
        "kubernetes.set_security_context(task, ...)",
        step_non_root,
    ),
    Rule(
        "step-without-gpu",
        "step",
        "a GPU under a pod that waits is lost to everyone",
        "task_config_passthroughs with RESOURCES on the component",
        step_without_gpu,
    ),
    Rule(
        "step-image-by-digest",
        "step",
        "a tag may mean another image tomorrow",
        "compile with images by digest",
        step_by_digest,
        for_release=True,
    ),
    Rule("step-deadline", "step", "a step without an end waits for ever", "kubernetes.set_timeout(task, seconds)", step_deadline),
    Rule("step-retries", "step", "retries of all layers multiply", f"set_retry({MOST_RETRIES}) at most", step_retries),
    Rule(
        "gates-uncached",
        "step",
        "a cached gate repeats a decision about another candidate",
        "set_caching_options(False)",
        gates_uncached,
    ),
    Rule(
        "key-where-it-signs",
        "step",
        "whoever has the private key can have any model promoted",
        f"leave {SIGNING} to {', '.join(SIGN)}; others verify with biovlm-trusted-keys",
        key_where_it_signs,
    ),
    Rule(
        "step-no-secret-by-value",
        "step",
        "a compiled pipeline is kept in Git",
        "kubernetes.use_secret_as_env(task, ...)",
        step_secrets,
    ),
)
