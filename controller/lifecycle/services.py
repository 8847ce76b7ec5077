"""Named threads that are started together and never die unnoticed."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """A loop with a name.

    Attributes:
        run: the loop; returns after `stop`, or raises when something unexpected happens.
        stop: ends the loop soon; any thread, any number of times.
    """

    name: str
    run: Callable[[], None]
    stop: Callable[[], None]


class Services:
    """Runs each service on a thread of its own.

    Args:
        on_crash: told when a service has raised; called on that service's thread.
    """

    def __init__(self, services: Sequence[Service], on_crash: Callable[[str, BaseException], None]) -> None:
        self._services = {service.name: service for service in services}
        self._on_crash = on_crash
        self._threads = {
            service.name: threading.Thread(target=self._guard, args=(service,), name=service.name, daemon=True)
            for service in services
        }

    def start(self) -> None:
        """Starts all, in the order given."""
        for thread in self._threads.values():
            thread.start()

    def stop(self, name: str, timeout_seconds: float) -> bool:
        """Stops one and waits for it; whether it has ended in time. One that was never started has ended."""
        self._services[name].stop()
        thread = self._threads[name]
        if thread.ident is None:
            return True
        thread.join(timeout_seconds)
        return not thread.is_alive()

    def _guard(self, service: Service) -> None:
        try:
            service.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the process must not live on without this thread
            self._on_crash(service.name, error)
