"""The entry point. It catches signals before it imports anything heavy, because PID 1 ignores them until then."""

import sys

from controller.lifecycle.signals import Signals


def main() -> None:
    """Runs the command line and exits with its status."""
    signals = Signals()
    from controller import cli  # noqa: PLC0415 - the signals must be caught first

    sys.exit(cli.main(signals))


if __name__ == "__main__":
    main()
