"""What can go wrong with a transaction, sorted by what is to be done about it."""

from enum import Enum, auto

import psycopg
from psycopg import errors

from controller.errors import BillingError


class DeposedError(BillingError):
    """The fence found a newer term: nothing more is to be written under this one."""


class InconsistentError(BillingError):
    """A row that was locked has changed all the same; the transaction is rolled back and tried again."""


class Fault(Enum):
    """What is to be done."""

    TRANSIENT = auto()
    """Another try may succeed: a deadlock, a serialization failure, a lost connection, a lock held by someone else."""
    DATA = auto()
    """These very rows can't be charged: halve the batch until they stand alone."""
    OURS = auto()
    """Nothing in the data explains it: permissions, schema, a full disk. The cycle fails."""


_TRANSIENT = (
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.LockNotAvailable,
    errors.ForeignKeyViolation,  # an instance deleted under our hands
    errors.IdleInTransactionSessionTimeout,
    errors.TooManyConnections,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    InconsistentError,
)
# SQLSTATE classes: 22 data exception, 23 integrity, 44 check option, P0 raised by a trigger; and a statement that takes
# too long, which a smaller batch does not.
_DATA = ("22", "23", "44", "P0", "09", "38", "39")


def classify(error: BaseException) -> Fault:
    """Sorts an error of a transaction."""
    if isinstance(error, _TRANSIENT):
        return Fault.TRANSIENT
    if isinstance(error, errors.QueryCanceled):
        return Fault.DATA
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        if error.sqlstate.startswith("08"):
            return Fault.TRANSIENT
        return Fault.DATA if error.sqlstate[:2] in _DATA else Fault.OURS
    if isinstance(error, psycopg.DataError):
        return Fault.DATA  # of the client: a value that Python can't hold
    # no SQLSTATE: libpq lost the connection, or could not make one
    return Fault.TRANSIENT if isinstance(error, (psycopg.OperationalError, BillingError)) else Fault.OURS
