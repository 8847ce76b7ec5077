"""The errors that people see. Each is one line that names the setting at fault, what is wrong and the remedy."""

#: How PostgreSQL and libpq begin the lines that follow an error's message. DETAIL may quote a customer's row.
_ADDITIONS = ("DETAIL:", "HINT:", "CONTEXT:", "QUERY:", "LINE ", "^")


def one_line(error: BaseException | str, *, with_detail: bool = False) -> str:
    """An error's message in one line, without what PostgreSQL adds to it.

    Args:
        error: an exception, or the text of one.
        with_detail: keeps PostgreSQL's DETAIL, which may quote rows. Use it only for text that only operators see.

    Returns:
        The lines of the message, joined by semicolons; the exception's class if it has no message.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    kept = [
        line
        for line in lines
        if line and (not line.startswith(_ADDITIONS) or (with_detail and line.startswith("DETAIL:")))
    ]
    return "; ".join(kept) or ("" if isinstance(error, str) else type(error).__name__)


class BillingError(Exception):
    """Base of every error that this controller raises on purpose. Its text is always one line."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.split()))


class SettingsError(BillingError):
    """A setting is wrong. Exit status 2."""

    exit_status = 2


class SecretFileError(SettingsError):
    """A file that holds a connection string is missing, or its content is wrong. It may be replaced at any moment."""


class DatabaseUnreachableError(BillingError):
    """PostgreSQL can't be reached, or refuses the connection. Exit status 3.

    Attributes:
        refused: True if the server answered and refused the login. Only a person can fix that.
    """

    exit_status = 3

    def __init__(self, message: str = "", *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class AnotherLeaderError(BillingError):
    """Another replica holds the advisory lock. Exit status 4."""

    exit_status = 4
