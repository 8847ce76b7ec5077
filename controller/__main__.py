"""The entry point: catches signals and binds the HTTP address before it imports anything heavy.

As PID 1, the process ignores signals until it has installed handlers. A probe is refused until the address is bound.
"""

import os
import sys

from controller import terminal
from controller.lifecycle.signals import Signals
from controller.listener import listen_early


def main() -> None:
    """Runs the command line and exits with its status."""
    terminal.prepare()
    signals = Signals()
    listen_early(sys.argv[1:], os.environ)
    from controller import cli  # noqa: PLC0415 - the signals must be caught first

    sys.exit(cli.main(signals))


if __name__ == "__main__":
    main()
