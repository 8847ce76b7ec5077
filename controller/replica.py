"""A replica: one controller process, assembled from its parts, and what happens when it is told to stop."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from controller import __version__
from controller.app import STOP_SECONDS, Application
from controller.billing.biller import Biller
from controller.billing.status import Status
from controller.billing.values import CycleResult
from controller.election import Elector, Leadership, Role
from controller.errors import BillingError, SettingsError
from controller.k8s import Announcer
from controller.lifecycle import systemd
from controller.lifecycle.control import DRAIN_COMMAND, ControlSocket
from controller.lifecycle.drain import Drain, DrainSteps
from controller.lifecycle.services import Service, Services
from controller.lifecycle.signals import Signals
from controller.lifecycle.stop import StopToken
from controller.listener import PAGE_SETTING, SETTING, parse_address
from controller.metrics import Metrics
from controller.web import HttpServer, Identity, OperatorRoutes, Routes, StatusCache, Vitals
from controller.web.health import why_not_live

#: How long the process outlives a `drain` command that has its answer. In a pod this process is PID 1: if it ended
#: first, the command would be killed, and the preStop hook would count as failed.
LINGER_SECONDS: Final = 0.5
#: How long a drain waits for an elector that doesn't lead, and may be connecting.
CONNECTING_STOP_SECONDS: Final = 0.5
#: The threads without which a replica is not alive.
VITAL: Final = ("elector", "biller", "heartbeat")

log = structlog.get_logger(part="app")


class Replica:
    """One controller process: it contends, leads, bills and drains."""

    def __init__(self, application: Application, signals: Signals) -> None:
        settings = application.settings
        self._application = application
        self._signals = signals
        self._crash: BaseException | None = None
        self._announcer = Announcer(
            application.pod(),
            redact=application.redact,
            leads=self._leads,
            former_leaders=application.former_leader_pods,
        )
        self._reader = application.web_reader()
        self._status_cache = StatusCache(self._reader.public_facts, time.monotonic, application.redact)
        self._metrics = Metrics(
            __version__,
            application.lock.name,
            leads=self._leads,
            read=self._read_status,
        )
        self._routes = self._public_routes()
        application.on_fenced = self._metrics.write_fenced
        stop = StopToken()
        heartbeat = application.heartbeat()
        self._biller = Biller(
            connect=application.ledger,
            cycle=application.cycle(stop, paced=True),
            guard=application.guard(stop),
            heartbeat=heartbeat,
            stop=stop,
            interval_minutes=settings.interval_minutes,
            takeover_delay_seconds=settings.takeover_delay_seconds,
            other_billers=settings.other_billers,
            on_idle=self._prepare_to_lead,
            on_cycle_ended=self._cycle_ended,
            on_collected=self._metrics.collected,
            on_halted=self._announcer.billing_halted,
        )
        self._elector = Elector(
            connect=application.open_lock_session,
            bounds=settings.bounds,
            clock=time.monotonic,
            on_elected=self._elected,
            on_ended=self._leadership_ended,
            on_joined=self._biller.standing_by,
            evicts=settings.eviction == "on",
            on_evicted=self._metrics.leader_evicted,
            on_command=self._biller.commands_waiting,
        )
        self._services = Services(self._crashed)
        self._drain = Drain(
            stop,
            DrainSteps(
                announce=self._announcer.drain_started,
                wait_for_work=partial(self._services.join, "biller"),
                resign=self._resign,
            ),
            settings.drain_timeout_seconds,
            time.monotonic,
            on_requested=signals.wake,
        )
        self._watchdog = None
        if settings.notify_socket and settings.watchdog_microseconds:
            self._watchdog = systemd.Watchdog(
                settings.notify_socket, settings.watchdog_microseconds / 1e6, self._why_not_live
            )
            # stopped last, because systemd's timeout applies until the process has ended
            self._services.add(Service("watchdog", self._watchdog.run, self._watchdog.stop))
        for name, server in (("http", self._http_server()), ("pages", self._page_server())):
            if server is not None:
                self._services.add(Service(name, server.run, server.stop))
        self._services.add(Service("k8s", self._announcer.run, self._announcer.stop))
        self._services.add(Service("elector", self._elector.run, self._elector.stop))
        self._services.add(Service("biller", self._biller.run, stop.stop_cycles))
        self._services.add(Service("heartbeat", heartbeat.run, heartbeat.stop))
        self._control = None
        if settings.control_socket is not None:
            self._control = ControlSocket(settings.control_socket, self._drain)
            self._services.add(Service("control", self._control.run, self._control.stop))

    def run(self) -> int:
        """Runs until it is told to stop, drains, and returns the exit status."""
        log.info("controller.started", version=__version__, lock=self._application.lock.name)
        self._services.start()
        systemd.notify(self._application.settings.notify_socket, "READY=1")
        signals_seen = 0
        while not self._drain.requested:
            signals_seen += self._handle(signals_seen, self._signals.wait(None))
        systemd.notify(self._application.settings.notify_socket, "STOPPING=1")
        draining = threading.Thread(target=self._carry_out_drain, name="drain", daemon=True)
        draining.start()
        while draining.is_alive():
            signals_seen += self._handle(signals_seen, self._signals.wait(0.1))
        if self._drain.reason == DRAIN_COMMAND and not signals_seen:
            if self._control is not None:
                self._control.wait_until_answered()
            self._signals.wait(LINGER_SECONDS)
        for name in reversed(self._services.names):
            if name != "elector" and not self._services.stop(name, STOP_SECONDS):
                log.warning("service.stuck", service=name, waited_seconds=STOP_SECONDS)
        self._application.spare_sessions.close()
        self._signals.ignore()
        log.info("controller.stopped")
        return self._exit_status()

    def _handle(self, seen_before: int, signals: list[signal.Signals]) -> int:
        """Lets the first signal drain and the second cut the drain short; returns the number of new signals."""
        for count, number in enumerate(signals, start=seen_before + 1):
            if count == 1:
                self._drain.request(number.name)
            else:
                self._drain.cut_short()
        return len(signals)

    def _carry_out_drain(self) -> None:
        outcome = self._drain.carry_out()
        self._metrics.drain_ended(outcome)
        self._announcer.drain_ended(outcome)

    def _resign(self, seconds: float) -> bool:
        """Ends the elector. A replica that doesn't lead may be connecting; that doesn't delay the drain."""
        leads = self._elector.role is Role.LEADER
        return self._services.stop("elector", seconds if leads else CONNECTING_STOP_SECONDS)

    def _elected(self, leadership: Leadership) -> None:
        self._biller.elected(leadership)
        self._announcer.elected(leadership.term)

    def _leadership_ended(self, leadership: Leadership, reason: str | None) -> None:
        self._biller.leadership_ended()
        if reason is None:
            self._announcer.resigned(leadership.term)
        else:
            self._announcer.deposed(leadership.term, reason)

    def _cycle_ended(self, result: CycleResult) -> None:
        self._metrics.cycle_ended(result)
        self._announcer.cycle_ended(result)

    def _prepare_to_lead(self, wanted: Callable[[], bool]) -> None:
        """Opens spare sessions while this replica is a standby."""
        if self._elector.role is Role.STANDBY:
            self._application.spare_sessions.fill(wanted)

    def _leads(self) -> bool:
        return self._elector.term is not None

    def _read_status(self) -> Status | None:
        facts = self._status_cache.get().facts
        return facts.status if facts is not None else None

    def _http_server(self) -> HttpServer | None:
        settings = self._application.settings
        if settings.http_address is None:
            return None
        return self._server(SETTING, settings.http_address, self._routes, given=settings.http_address_given)

    def _page_server(self) -> HttpServer | None:
        """Returns the server of the operator's pages."""
        settings = self._application.settings
        if settings.page_address is None:
            return None
        host, _ = parse_address(settings.page_address, PAGE_SETTING)
        routes = OperatorRoutes(
            self._identity(),
            self._vitals,
            self._routes.failed_checks,
            StatusCache(self._reader.operator_facts, time.monotonic, self._application.redact),
            self._reader,
            host=host,
        )
        return self._server(PAGE_SETTING, settings.page_address, routes, given=settings.page_address_given)

    def _server(self, setting: str, address: str, routes: Routes | OperatorRoutes, *, given: bool) -> HttpServer | None:
        try:
            return HttpServer(*parse_address(address, setting), routes, setting=setting)
        except SettingsError as error:
            if given:
                raise
            # Probably a second replica on this host. Without a configured address, it can do without HTTP.
            log.warning("http.unavailable", error=str(error))
            return None

    def _public_routes(self) -> Routes:
        settings = self._application.settings
        return Routes(
            self._identity(),
            self._vitals,
            self._status_cache,
            self._metrics.render,
            settings.bounds.session_timeout_seconds,
            separate_worker_url=settings.direct_url_setting == "DATABASE_DIRECT_URL",
        )

    def _identity(self) -> Identity:
        settings = self._application.settings
        return Identity(
            self._application.instance_id,
            __version__,
            self._application.lock.name,
            settings.currency,
            settings.pod_name,
            settings.node_name,
        )

    def _vitals(self) -> Vitals:
        return Vitals(
            role=self._elector.role,
            term=self._elector.term,
            silent_seconds=time.monotonic() - self._elector.alive_at,
            draining=self._drain.requested,
            ended_threads=tuple(name for name in self._services.ended if name in VITAL),
            halted=self._biller.halted,
            connect_error=self._application.redact(self._elector.trouble) if self._elector.trouble else None,
        )

    def _why_not_live(self) -> list[str]:
        return why_not_live(self._vitals(), self._application.settings.bounds.session_timeout_seconds)

    def _crashed(self, name: str, error: BaseException) -> None:
        self._crash = self._crash or error
        self._drain.request(f"{name} crashed")
        if isinstance(error, BillingError):
            log.error("service.crashed", service=name, error=str(error))
        else:
            log.error("service.crashed", service=name, exc_info=error)

    def _exit_status(self) -> int:
        if self._crash is None:
            return 0
        return self._crash.exit_status if isinstance(self._crash, BillingError) else 1
