"""Makes the leader visible in Kubernetes: a label, a deletion cost, Events. A convenience; PostgreSQL alone elects.

What people get
---------------
    label       billing.containerstacks.io/role: leader | standby        on this replica's pod
    annotation  controller.kubernetes.io/pod-deletion-cost: 100 | 0      likewise, so that a scale-down takes standbys
    Events      of the Deployment BILLING_DEPLOYMENT_NAME, else of the pod; reasons: see `events.Reason`

The label tells what this replica believes. It is set to `standby` at the start, since a container that was killed as
the leader leaves `leader` behind on its pod; one that is frozen keeps it until it wakes.

What it guarantees
------------------
- No caller ever waits: what is to be told is put into a bounded queue (the oldest Event gives way), and the label is a
  wanted state, which becomes true eventually, with back-off, for as long as the process lives.
- Whatever fails costs one warning a kind, until it has worked again: no permission, not found, API server away. A
  request ends after REQUEST_SECONDS. At the end what is left is tried once, within FLUSH_SECONDS.
- Outside a cluster, or switched off, there is no thread's work, no import of the client and no line but one at debug.
- The service account's token is read anew every minute by the official client, as it rotates.

The official client is used by its two lowest parts, the configuration and the connection (TLS, token, proxy, pool).
Its generated classes for Pods and Deployments would add 28 MiB to each replica for three requests.

What it must not do: influence who leads or whether billing goes on, read settings, end the process, or let a secret
out: texts from elsewhere are redacted before they become an Event.
"""

from controller.k8s.announcer import Announcer
from controller.k8s.pod import Pod, find_pod

__all__ = ["Announcer", "Pod", "find_pod"]
