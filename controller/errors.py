"""The errors that people see: one line each, naming the setting at fault and the remedy."""


class BillingError(Exception):
    """Root of every error that this controller raises on purpose; its text is one line, whatever it quotes."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.split()))


class SettingsError(BillingError):
    """A setting is wrong: exit status 2."""

    exit_status = 2


class DatabaseUnreachableError(BillingError):
    """PostgreSQL can't be reached, or refuses us: exit status 3."""

    exit_status = 3


class AnotherLeaderError(BillingError):
    """The advisory lock is held by another replica: exit status 4."""

    exit_status = 4
