"""Rules for the steps of a compiled pipeline.

KFP's server makes their pods. It sets allowPrivilegeEscalation, capabilities and seccomp by itself, and its own container in the same pod
needs the account's token; so what a compiled pipeline can say, and what is asked here, is the rest.
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


def step_non_root(step: Step) -> Iterator[Fault]:
    """A user by number."""
    context = step.pod.get("securityContext") or {}
    if context.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot", "is not true"
    if not str(context.get("runAsUser", "")).isdigit() or int(context["runAsUser"]) == 0:
        yield "securityContext.runAsUser", f"is {context.get('runAsUser')}, not a number above 0"


def step_limits(step: Step) -> Iterator[Fault]:
    """Requests and limits; no GPU: those go to Ray's workers."""
    resources = step.container.get("resources") or {}
    for name in ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"):
        if not resources.get(name):
            yield f"container.resources.{name}", "is missing"
    if resources.get("accelerator"):
        yield "container.resources.accelerator", "gives a GPU to the launcher"


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
        "step-limits", "step", "one pod must not starve a node", "set cpu and memory, request and limit, on the task", step_limits
    ),
    Rule(
        "step-image-by-digest", "step", "a tag may mean another image tomorrow", "compile with images by digest", step_by_digest
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
        "step-no-secret-by-value",
        "step",
        "a compiled pipeline is kept in Git",
        "kubernetes.use_secret_as_env(task, ...)",
        step_secrets,
    ),
)
