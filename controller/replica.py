"""A replica: one controller process, put together from its parts. With `app` the composition root."""

import signal
import threading
import time
from typing import Final

import structlog

from controller import __version__
from controller.app import STOP_SECONDS, Application
from controller.billing.biller import Biller
from controller.billing.values import CycleResult
from controller.election import Elector, Leadership, Role
from controller.errors import BillingError, SettingsError
from controller.k8s import Announcer
from controller.lifecycle import systemd
from controller.lifecycle.control import DRAIN_COMMAND, ControlSocket
from controller.lifecycle.drain import Drain, DrainSteps
from controller.lifecycle.services import Service, Services
from controller.lifecycle.signals import Signals
from controller.metrics import Metrics
from controller.settings import parse_address
from controller.web import HttpServer, Identity, Routes, StatusCache, Vitals

#: After a `drain` command the process waits so long for its SIGTERM, so that the command can answer first.
LINGER_SECONDS: Final = 5.0
#: For an elector that does not lead.
CONNECTING_SECONDS: Final = 0.5
#: The threads without which a replica is not alive.
VITAL: Final = ("elector", "biller", "heartbeat")

log = structlog.get_logger(part="app")


class Replica:
    """One controller process: contends, leads, bills, drains."""

    def __init__(self, application: Application, signals: Signals) -> None:
        settings = application.settings
        self.application = application
        self._signals = signals
        self._crash: BaseException | None = None
        self._leadership: Leadership | None = None
        self.announcer = Announcer(application.place(), redact=application.redact)
        self.reader = StatusCache(application.read_for_web, time.monotonic, application.redact)
        self.metrics = Metrics(
            __version__,
            application.lock.name,
            leads=lambda: self._vitals().term is not None,
            read=lambda: self.reader.get().status,
        )
        application.on_fenced = self.metrics.write_fenced
        self.heartbeat = application.heartbeat()
        self.biller = Biller(
            connect=application.ledger,
            make_cycle=lambda biller: application.cycle(biller.may_go_on, biller.pause),
            make_guard=lambda biller: application.guard(biller.at_leisure),
            heartbeat=self.heartbeat,
            interval_minutes=settings.interval_minutes,
            takeover_delay_seconds=settings.takeover_delay_seconds,
            step_down=self._step_down,
            on_cycle=self._cycle_ended,
        )
        self.elector = Elector(
            connect=application.open_lock_session,
            bounds=settings.bounds,
            clock=time.monotonic,
            on_elected=self._elected,
            on_deposed=self._deposed,
            evicts=settings.eviction == "on",
            on_evicted=self.metrics.leader_evicted,
        )
        self.drain = Drain(
            DrainSteps(
                refuse_traffic=lambda: self.announcer.drain_started(self.drain.reason),
                finish_work=lambda seconds: self._services.stop("biller", seconds),
                stop_after_batch=self.biller.stop_after_batch,
                resign=self._resign,
            ),
            settings.drain_timeout_seconds,
            time.monotonic,
            on_asked=signals.wake,
        )
        services = [
            *self._http(),
            Service("cluster", self.announcer.run, self.announcer.stop),
            Service("elector", self.elector.run, self.elector.stop),
            Service("biller", self.biller.run, self.biller.drain),
            Service("heartbeat", self.heartbeat.run, self.heartbeat.stop),
        ]
        if settings.control_socket is not None:
            control = ControlSocket(settings.control_socket, self.drain)
            services.append(Service("control", control.run, control.stop))
        self._services = Services(services, self._crashed)
        self._names = [service.name for service in services]

    def run(self) -> int:
        """Runs until it is asked to stop, and drains; the exit status."""
        log.info("controller.started", version=__version__, lock=self.application.lock.name)
        self._services.start()
        systemd.notify(self.application.settings.notify_socket, "READY=1")
        signalled = 0
        while not self.drain.asked:
            signalled += self._heed(signalled, self._signals.wait(None))
        systemd.notify(self.application.settings.notify_socket, "STOPPING=1")
        draining = threading.Thread(target=self._drain, name="drain", daemon=True)
        draining.start()
        while draining.is_alive():
            signalled += self._heed(signalled, self._signals.wait(0.1))
        if self.drain.reason == DRAIN_COMMAND and not signalled:
            self._signals.wait(LINGER_SECONDS)
        for name in reversed([name for name in self._names if name != "elector"]):
            if not self._services.stop(name, STOP_SECONDS):
                log.warning("service.stuck", service=name, waited_seconds=STOP_SECONDS)
        self._signals.ignore()
        log.info("controller.stopped")
        return self._exit_status()

    def _heed(self, before: int, signals: list[signal.Signals]) -> int:
        """The first signal drains, the second hurries, also when both arrive together; how many there were."""
        for count, number in enumerate(signals, start=before + 1):
            if count == 1:
                self.drain.ask(number.name)
            else:
                self.drain.hurry()
        return len(signals)

    def _resign(self, seconds: float) -> bool:
        """One that holds nothing may be in the middle of connecting, for which nobody has to wait."""
        term = self._vitals().term
        ended = self._services.stop("elector", seconds if self.elector.role is Role.LEADER else CONNECTING_SECONDS)
        if term is not None:
            self.announcer.resigned(term)
        return ended

    def _http(self) -> list[Service]:
        settings = self.application.settings
        if settings.http_address is None:
            return []
        site = Routes(
            Identity(
                self.application.instance_id,
                __version__,
                self.application.lock.name,
                settings.currency,
                settings.pod_name,
                settings.node_name,
            ),
            self._vitals,
            self.reader,
            self.metrics.render,
            settings.bounds.session_timeout_seconds,
            workers_apart=settings.direct_url_setting == "DATABASE_DIRECT_URL",
        )
        try:
            server = HttpServer(*parse_address(settings.http_address), site)
        except SettingsError as error:
            if settings.http_address_given:
                raise
            log.warning("http.unavailable", error=str(error))  # a second replica on this host; nobody asked for it
            return []
        return [Service("http", server.run, server.stop)]

    def _vitals(self) -> Vitals:
        leadership = self._leadership
        running = {thread.name for thread in threading.enumerate()}
        return Vitals(
            role=self.elector.role,
            term=leadership.term if leadership is not None and leadership.still_leads() else None,
            silent_seconds=time.monotonic() - self.elector.alive_at,
            draining=self.drain.asked,
            ended=tuple(name for name in VITAL if name not in running),
            trouble=self.application.redact(self.elector.trouble) if self.elector.trouble else None,
        )

    def _elected(self, leadership: Leadership) -> None:
        self._leadership = leadership
        self.biller.elected(leadership)
        self.announcer.elected(leadership.term)

    def _deposed(self, leadership: Leadership) -> None:
        self.biller.deposed(leadership)
        self.announcer.lost(leadership.term)

    def _step_down(self, seconds: float) -> None:
        self.elector.step_down(seconds)
        if self._leadership is not None:
            self.announcer.resigned(self._leadership.term)

    def _cycle_ended(self, result: CycleResult) -> None:
        self.metrics.cycle_ended(result)
        self.announcer.cycle_ended(result)

    def _drain(self) -> None:
        outcome = self.drain.carry_out()
        self.metrics.drain_ended(outcome)
        self.announcer.drain_ended(outcome)

    def _exit_status(self) -> int:
        if self._crash is None:
            return 0
        return self._crash.exit_status if isinstance(self._crash, BillingError) else 1

    def _crashed(self, name: str, error: BaseException) -> None:
        self._crash = self._crash or error
        self.drain.ask(f"{name} crashed")
        if isinstance(error, BillingError):
            log.error("service.crashed", service=name, error=str(error))
        else:
            log.error("service.crashed", service=name, exc_info=error)
