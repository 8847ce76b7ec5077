"""The entry point. Signals are caught before anything heavy is imported: PID 1 ignores them until then."""

import sys

from controller.lifecycle.signals import Signals


def main() -> None:
    """Runs the command line."""
    signals = Signals()
    from controller import cli  # noqa: PLC0415 - after the signals, on purpose

    sys.exit(cli.main(signals))


if __name__ == "__main__":
    main()
