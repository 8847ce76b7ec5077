"""The list of checks, in the order that they run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

import psycopg

from controller import settings
from controller.app import Application
from controller.doctor import billing, kubernetes, schema, server
from controller.doctor.findings import Finding, Level, as_finding
from controller.doctor.patient import Patient
from controller.errors import BillingError, SettingsError, one_line
from controller.settings import Settings

Results = Iterator[Finding]


@dataclass(frozen=True)
class Check:
    """A check, and the checks that must pass before it."""

    name: str
    run: Callable[[Patient], Results]
    needs: tuple[str, ...] = ()


CHECKS: Final = (
    Check("variables", server.variables),
    Check("bounds", server.bounds),
    Check("url", server.url),
    Check("connection", server.connection, ("url",)),
    Check("tls", server.tls, ("connection",)),
    Check("server", server.version, ("connection",)),
    Check("clock", server.clock, ("connection",)),
    Check("pooler", server.pooler, ("connection",)),
    Check("schema", schema.tables, ("connection",)),
    Check("types", schema.types, ("schema",)),
    Check("migrations", schema.applied, ("schema",)),
    Check("privileges", schema.privileges, ("schema",)),
    Check("row policies", schema.policies, ("schema",)),
    Check("indexes", schema.indexes, ("migrations",)),
    Check("other billers", billing.others, ("migrations",)),
    Check("fallback", billing.fallback, ("migrations",)),
    Check("billing", billing.verdict, ("migrations",)),
    Check("overdue", billing.overdue, ("migrations",)),
    Check("standbys", billing.standbys, ("connection",)),
    Check("kubernetes", kubernetes.permissions),
)


@dataclass
class _Examination:
    patient: Patient
    findings: list[Finding] = field(default_factory=list)
    #: Checks that failed or were skipped.
    broken: set[str] = field(default_factory=set)

    def run(self, check: Check) -> None:
        missing = next((need for need in check.needs if need in self.broken), None)
        if missing is not None:
            found = [Finding(check.name, Level.SKIPPED, f"skipped, because the {missing} check failed")]
        else:
            found = self._results(check)
        if {finding.level for finding in found} & {Level.FAILURE, Level.SKIPPED}:
            self.broken.add(check.name)
        if self.patient.lost:
            self.broken.add("connection")
        self.findings += found

    def _results(self, check: Check) -> list[Finding]:
        found: list[Finding] = []
        try:
            found.extend(check.run(self.patient))  # keeps what was found before an error
        except (psycopg.Error, BillingError) as error:
            denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
            text = f"{one_line(error)}{'; run manifests/role.sql as the owner of the tables' if denied else ''}"
            found.append(as_finding(check.name, Level.FAILURE, self.patient.redact(text)))
        return found


def examine(load: Callable[[], Settings] = settings.load) -> list[Finding]:
    """Runs every check and returns the findings in order. Raises nothing that a check can report.

    Args:
        load: reads the settings.
    """
    try:
        loaded = load()
    except SettingsError as error:
        skipped = "skipped, because the settings check failed"
        return [
            Finding(
                "settings", Level.FAILURE, str(error), "correct the variable; docs/configuration.md lists them all"
            ),
            *(Finding(check.name, Level.SKIPPED, skipped) for check in CHECKS),
        ]
    with ExitStack() as sessions:
        examination = _Examination(Patient(Application(loaded), sessions))
        examination.findings.append(Finding("settings", Level.OK, "every value is valid"))
        for check in CHECKS:
            examination.run(check)
    return examination.findings
