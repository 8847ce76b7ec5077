"""Shows the leader in Kubernetes: a label, a deletion cost, and Events. PostgreSQL alone elects.

What people see
---------------
    label       billing.containerstacks.io/role: leader | standby        on this replica's pod
    annotation  controller.kubernetes.io/pod-deletion-cost: 100 | 0      on this replica's pod, for scale-downs
    Events      on the Deployment BILLING_DEPLOYMENT_NAME, or else on the pod; reasons: see `events.Reason`

The label shows what this replica believes. It is set to `standby` at the start, because a leader whose container was
killed has left `leader` on the pod. A leader removes the label from former leaders that can't do it themselves, for
example because their node is unreachable; see `role_label`.

Guarantees
----------
- No caller waits. Events go into a bounded queue that drops its oldest; the label is a desired state that is applied
  with back-off, for as long as the process lives.
- Each kind of failure is logged as one warning until the requests succeed again: a missing permission, a missing
  object, an API server that is down. A request ends after REQUEST_SECONDS. At the end, everything pending is tried
  again within FLUSH_SECONDS.
- Outside a cluster, or if switched off, it costs one log line at debug level: no requests, no import of the client.
- The official client reads the service account's token again every minute, so a rotated token works.

Only the lowest two layers of the official client are used: the configuration and the connection (TLS, token, proxy,
pool). Its generated classes for Pods and Deployments would add 28 MiB to each replica for four requests.

This package must not influence who leads or whether billing continues, read settings, or end the process. Texts from
other sources are redacted before they become an Event.
"""

from controller.k8s.announcer import Announcer
from controller.k8s.pod import Pod, find_pod

__all__ = ["Announcer", "Pod", "find_pod"]
