"""Decides what the role labels show: this replica's own, and those of former leaders that can't change theirs.

A pod whose node is unreachable keeps `role=leader`, although another replica leads. Its successor changes the label.
That patch may arrive late, when the former leader leads again. The API server can't detect this, because uid and label
match. So a leader sets its own label again: once soon after its election, when no patch of its predecessor can still be
in flight, and then every minute.
"""

from collections.abc import Callable
from typing import Final

from controller.k8s.api import REQUEST_SECONDS, Api, ApiError
from controller.k8s.pod import Pod

DELETION_COSTS: Final = {"leader": 100, "standby": 0}
#: Seconds from a leader's election until it first sets its label again.
SETTLE_SECONDS: Final = REQUEST_SECONDS + 2.0
ASSERT_SECONDS: Final = 60.0


class RoleLabels:
    """Decides on the next request about a label. `want` may be called by any thread, the rest by the announcer's.

    Args:
        pod: this replica's pod.
        leads: returns True while this replica may believe that it leads.
        former_leaders: returns the pods that led before a term. May raise anything.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        pod: Pod,
        leads: Callable[[], bool],
        former_leaders: Callable[[int], list[Pod]],
        clock: Callable[[], float],
    ) -> None:
        self._pod = pod
        self._leads = leads
        self._former_leaders = former_leaders
        self._clock = clock
        self._wanted: tuple[str, int | None] = ("standby", None)
        self._shown: tuple[str, int | None] | None = None
        #: Pods that may still carry the leader's label; None if they have to be read.
        self._former: list[Pod] | None = []
        self._assert_at = 0.0

    @property
    def wanted_role(self) -> str:
        return self._wanted[0]

    @property
    def own_is_due(self) -> bool:
        """True if this replica's label doesn't show its role yet."""
        return self._wanted != self._shown

    def want(self, role: str, term: int | None = None) -> None:
        """Sets the role to show. Only a leader has a `term`."""
        self._wanted = role, term

    def due_at(self) -> float | None:
        """Returns when the next request is due, by the clock; None if there is nothing to do."""
        if self.own_is_due:
            return 0.0
        if self.wanted_role != "leader":
            return None
        return self._assert_at if self._former == [] else 0.0

    def send(self, api: Api, seconds: float) -> None:
        """Sends the requests that are due. This pod's label comes first, so there is always a pod labelled as leader.

        Raises:
            ApiError: a request failed.
            BillingError: the former leaders can't be read.
        """
        wanted = self._wanted
        if wanted != self._shown:
            self._show(api, wanted[0], seconds)
            self._shown, self._former = wanted, None if wanted[0] == "leader" else []
            self._assert_at = self._clock() + SETTLE_SECONDS
        elif not self._leads():  # the end of the leadership is about to be reported
            self._former, self._assert_at = [], self._clock() + SETTLE_SECONDS
        elif self._former != []:
            self._relabel_former_leaders(api, wanted[1], seconds)
        elif self._clock() >= self._assert_at:
            self._show(api, wanted[0], seconds)
            self._assert_at = self._clock() + ASSERT_SECONDS

    def _relabel_former_leaders(self, api: Api, term: int | None, seconds: float) -> None:
        if self._former is None:
            found = [] if term is None else self._former_leaders(term)
            self._former = [pod for pod in found if pod.uid and pod.namespace == self._pod.namespace]
        while self._former and self._leads():
            try:
                api.show_former_leader(self._former[0], DELETION_COSTS["standby"], seconds)
            except ApiError as error:
                if not error.transient:
                    self._former.pop(0)
                raise
            self._former.pop(0)

    def _show(self, api: Api, role: str, seconds: float) -> None:
        api.show_role(role, DELETION_COSTS[role], seconds)
