"""The stop token: which work may still start. The drain withdraws permission; everything that bills asks first."""

import threading
from collections.abc import Callable


class StopToken:
    """Permission to start work, withdrawn in two steps: first for cycles, then for batches.

    Neither step interrupts a transaction, and neither can be undone. Every method is safe on any thread, any number of
    times.
    """

    def __init__(self) -> None:
        self._cycles_stopped = threading.Event()
        self._batches_stopped = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def may_start_cycle(self) -> bool:
        """True until a drain begins. The guard stops then too, because the next leader can check the rest."""
        return not self._cycles_stopped.is_set()

    def may_start_batch(self) -> bool:
        """True until the drain's deadline, so that a drain can finish the cycle in hand."""
        return not self._batches_stopped.is_set()

    def stop_cycles(self) -> None:
        """Prevents further cycles from starting."""
        with self._lock:
            self._cycles_stopped.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def stop_batches(self) -> None:
        """Prevents further batches from starting, and therefore further cycles too."""
        self._batches_stopped.set()
        self.stop_cycles()

    def on_stop_cycles(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, when cycles stop; immediately if they already have. It must not block."""
        with self._lock:
            if self.may_start_cycle():
                self._callbacks.append(callback)
                return
        callback()

    def pause(self, seconds: float) -> None:
        """Blocks between two batches for up to `seconds`; returns early once no cycle may start."""
        self._cycles_stopped.wait(seconds)

    def wait(self, seconds: float) -> None:
        """Blocks between two batches for up to `seconds`; returns early once no batch may start."""
        self._batches_stopped.wait(seconds)
