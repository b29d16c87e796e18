"""Who may break which rule, and why. A line here is a decision; what no object needs any more is refused too."""

from __future__ import annotations

from infra.policy.rule import Permission

PERMISSIONS = (
    Permission("no-api-token", "CronJob biovlm/biovlm-reaper", "it lists and deletes RayJobs"),
    Permission(
        "no-cluster-role",
        "ClusterRole biovlm-quota-reader",
        "queues' quotas have no namespace; it gets ours by name, and lists nothing",
    ),
    Permission("no-cluster-role", "ClusterRoleBinding biovlm-quota-reader", "binds it to the launcher alone"),
)
