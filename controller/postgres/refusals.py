"""Tells a refused login from a server that can't be reached yet.

psycopg gives no SQLSTATE for a failed connection, and the server's message may be in any language. libpq knows
whether the server asked for a password, so the language matters only for refusals before that, and for a full server.
"""

import re
from typing import Final

import psycopg

#: Refusals that need no password, in English.
_REFUSED: Final = re.compile(
    r"no pg_hba\.conf entry|pg_hba\.conf rejects|does not exist|not permitted to log in|permission denied"
    r"|authentication failed|requires a valid client certificate|no password supplied"
    r"|certificate verify failed|server certificate for|does not support SSL"
)
#: Failures that end without intervention, in English. A CA may be mounted late.
_TRANSIENT: Final = re.compile(
    r"root certificate file|starting up|shutting down|not yet accepting|in recovery mode"
    r"|too many (clients|connections)|slots are reserved"
)


def is_refusal(error: psycopg.Error) -> bool:
    """Returns True if the server refused the login, so retrying every second is useless.

    Args:
        error: raised by connecting.
    """
    text = str(error)
    if _TRANSIENT.search(text):
        return False
    attempt = error.pgconn
    asked_for_password = attempt is not None and (attempt.used_password or attempt.needs_password)
    return asked_for_password or _REFUSED.search(text) is not None
