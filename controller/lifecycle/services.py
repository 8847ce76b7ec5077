"""Named threads that start together and never die unnoticed."""

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """A loop that runs on a thread of the same name.

    Attributes:
        run: the loop; returns after `stop`, or raises if something unexpected happens.
        stop: tells the loop to end soon. Safe on any thread, any number of times.
    """

    name: str
    run: Callable[[], None]
    stop: Callable[[], None]


class Services:
    """Runs each service on its own thread.

    Args:
        on_crash: called with a service's name and the exception it raised, on that service's thread.
    """

    def __init__(self, on_crash: Callable[[str, BaseException], None]) -> None:
        self._on_crash = on_crash
        self._services: dict[str, Service] = {}
        self._threads: dict[str, threading.Thread] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The services' names, in the order that they were added."""
        return tuple(self._services)

    @property
    def ended(self) -> tuple[str, ...]:
        """Services that have been started and no longer run."""
        return tuple(name for name, thread in self._threads.items() if thread.ident and not thread.is_alive())

    def add(self, service: Service) -> None:
        """Adds a service. All of them must be added before `start`."""
        self._services[service.name] = service
        self._threads[service.name] = threading.Thread(
            target=self._run_service, args=(service,), name=service.name, daemon=True
        )

    def start(self) -> None:
        """Starts every service, in the order that they were added."""
        for thread in self._threads.values():
            thread.start()

    def stop(self, name: str, timeout_seconds: float) -> bool:
        """Stops a service and waits for it; returns True if it ended in time, or was never started."""
        self._services[name].stop()
        return self.join(name, timeout_seconds)

    def join(self, name: str, timeout_seconds: float) -> bool:
        """Waits for a service to end; returns True if it ended in time, or was never started."""
        thread = self._threads[name]
        if thread.ident is None:
            return True
        thread.join(timeout_seconds)
        return not thread.is_alive()

    def _run_service(self, service: Service) -> None:
        try:
            service.run()
        except BaseException as error:  # noqa: BLE001 - without this thread the process must not live on
            self._on_crash(service.name, error)
