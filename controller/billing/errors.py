"""What can go wrong in a transaction, sorted by what to do about it."""

from enum import Enum, auto

import psycopg
from psycopg import errors

from controller.errors import BillingError


class DeposedError(BillingError):
    """The fence refused this term, or the leadership has ended. Nothing more may be written under it."""


class StoppedError(BillingError):
    """The drain's deadline has passed. No further batch may start."""


class CycleFailedError(BillingError):
    """The cycle can't continue, for a reason that lies with the controller or the server and not with anyone's data."""


class InconsistentError(BillingError):
    """A row changed although it was locked. The transaction is rolled back and tried again."""


class Fault(Enum):
    """What an error calls for."""

    TRANSIENT = auto()
    """Try again: a deadlock, a serialization failure, a lost connection, or a lock that another session holds."""
    DATA = auto()
    """These very rows can't be charged: split the batch until the organizations at fault stand alone."""
    OURS = auto()
    """No data explains it: permissions, schema, a full disk. Fail the cycle."""


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
# SQLSTATE classes: 22 data exception, 23 integrity constraint violation, 44 check option violation, P0 raised by a
# PL/pgSQL trigger, 09 triggered action exception, 38 and 39 errors in external routines.
_DATA = ("22", "23", "44", "P0", "09", "38", "39")


def classify(error: BaseException) -> Fault:
    """Decides what an error of a transaction calls for."""
    if isinstance(error, _TRANSIENT):
        return Fault.TRANSIENT
    if isinstance(error, errors.QueryCanceled):
        return Fault.DATA  # the statement took too long, which a smaller batch does not
    if isinstance(error, psycopg.Error) and error.sqlstate is not None:
        if error.sqlstate.startswith("08"):
            return Fault.TRANSIENT
        return Fault.DATA if error.sqlstate[:2] in _DATA else Fault.OURS
    if isinstance(error, psycopg.DataError):
        return Fault.DATA  # raised by the client: a value that Python can't represent
    # Without an SQLSTATE, libpq has lost the connection or could not open one.
    return Fault.TRANSIENT if isinstance(error, (psycopg.OperationalError, BillingError)) else Fault.OURS
