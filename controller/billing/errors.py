"""What can go wrong in a transaction, and which errors are worth another try."""

import psycopg
from psycopg import errors

from controller.errors import BillingError


class DeposedError(BillingError):
    """The fence refused this term, or the leadership has ended. Nothing more may be written under it."""


class StoppedError(BillingError):
    """The drain's deadline has passed. No further batch may start."""


class HaltedError(StoppedError):
    """Billing is halted because of another biller. No batch may start until the cause is gone."""


class CycleFailedError(BillingError):
    """The cycle can't continue. The controller or the server is the cause, not an organization's data."""


class HeartbeatError(CycleFailedError):
    """This leader has no recent heartbeat. The application may be billing the same hours."""


class InconsistentError(BillingError):
    """The rows written differ from the rows charged. The transaction is rolled back."""


class StillCommittingError(BillingError):
    """The session was lost during its COMMIT, and the server has not finished that commit. Ask again later."""


_TRANSIENT = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.ForeignKeyViolation,  # an instance was deleted while it was being charged
    errors.IdleInTransactionSessionTimeout,
    errors.TooManyConnections,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    InconsistentError,
)


def is_transient(error: BaseException) -> bool:
    """Returns True if the same transaction may succeed when it is tried again.

    These are deadlocks, serialization failures, other sessions' locks, and lost connections. After any other error the
    batch is split, regardless of the SQLSTATE: evidence.py says why.
    """
    if isinstance(error, _TRANSIENT):
        return True
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        return error.sqlstate.startswith("08")
    # without an SQLSTATE, libpq has lost the connection or could not open one
    return isinstance(error, (psycopg.OperationalError, BillingError))
