"""Logs, in one line per cycle, which customers it could not charge as usual: how many, and which are new.

Otherwise a thousand failing organizations would be a thousand lines every hour, and a new one would be lost among them.
The complete list is in the database: `history RUN` and the operator's page show it. Each organization's failure is also
logged at debug level when it happens. A transaction reports at most 20 instances that are priced by default, and 20
whose last_billed_at was corrected, so their counts may be too low.
"""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Final

import structlog

from controller.billing.values import BatchResult

#: The most customers that a line names.
NAMED: Final = 5

log = structlog.get_logger(part="billing")


class CustomersLog:
    """What this process has logged. Thread-safe.

    "New" means that this process did not log it for the previous cycle. A new leader logs everything once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._said: frozenset[tuple[str, str]] = frozenset()
        self._failed: dict[str, str] = {}
        self._unpriced: dict[str, None] = {}
        self._rewound: dict[str, None] = {}

    def add(self, result: BatchResult) -> None:
        """Adds the result of one transaction."""
        with self._lock:
            self._failed.update({str(organization): error for organization, error in result.failed.items()})
            self._unpriced.update(dict.fromkeys(map(_name, result.priced_by_default)))
            self._rewound.update(dict.fromkeys(map(_name, result.rewound)))

    def cycle_ended(self) -> None:
        """Writes the line if something is new, and begins the next cycle."""
        with self._lock:
            failed, unpriced, rewound = self._failed, list(self._unpriced), list(self._rewound)
            self._failed, self._unpriced, self._rewound = {}, {}, {}
            now = frozenset(
                (kind, name) for kind, names in (("failed", failed), ("unpriced", unpriced)) for name in names
            )
            new = now - self._said
            self._said = now
        fields: dict[str, Any] = {
            **_part("failed_organizations", failed, [each for each in failed if ("failed", each) in new]),
            **_part("priced_by_default", unpriced, [each for each in unpriced if ("unpriced", each) in new]),
            **_part("rewound", rewound, rewound),
        }
        if not fields:
            return
        if error := next((text for name, text in failed.items() if ("failed", name) in new), None):
            fields["error"] = error
        write = log.warning if new or rewound else log.debug
        write("customers.affected", **fields)


def _part(kind: str, names: Mapping[str, str] | Sequence[str], new: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    return {kind: len(names)} | ({f"{kind}_new": len(new), f"{kind}_named": list(new[:NAMED])} if new else {})


def _name(instance: Mapping[str, str]) -> str:
    """Returns an instance's values in one text: its id, its label, and what is unusual about it."""
    return ", ".join(f"{key} {value}" for key, value in instance.items())
