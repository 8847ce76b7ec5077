"""The pages in a real browser: no accessibility violation, no sideways scrolling, nothing blocked by their own policy.

The tests need Chromium, Node.js and the packages of package-lock.json: `make browser` installs the packages. The
picture in the README is one of those that the tests take.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest

from controller.billing.answers import Explanation, Subject
from controller.billing.page_facts import OperatorFacts, PublicFacts
from controller.errors import DatabaseUnreachableError
from controller.web import HttpServer, OperatorRoutes, Routes, StatusCache
from tests.page_samples import IDENTITY, READY, explanation, organization_id, picture, troubled

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parents[1]
PICTURE: Final = ROOT / "docs" / "operator-page.png"
WIDTHS: Final = {"telephone": (360, 740), "tablet": (768, 1024), "laptop": (1280, 800)}
pytestmark = pytest.mark.timeout(300)
#: Where distributions put Chromium. BROWSER overrides them.
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def chromium() -> str:
    found = os.environ.get("BROWSER") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if shutil.which("node") is None:
        pytest.skip("no Node.js: apt-get install nodejs")
    if not (FOLDER / "node_modules" / "axe-core").exists():
        pytest.skip("no node_modules: make browser")
    return found


class Database:
    """Sample facts; `away` makes the next read fail."""

    away = False
    now = 1000.0

    def operator(self) -> OperatorFacts:
        if self.away:
            raise DatabaseUnreachableError("can't connect to PostgreSQL at db:5432 (DATABASE_URL): connection refused")
        return troubled()

    def public(self) -> PublicFacts:
        return PublicFacts(troubled().status, tuple(run | {"error": None} for run in troubled().runs))

    def find(self, name: str) -> tuple[Subject, ...]:
        assert name
        return (explanation().subject,) * 2

    def explain(self, subject: UUID) -> Explanation:
        assert subject == organization_id(3)
        return explanation()


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Servers with sample facts: what each page is called, and its address."""
    database, gone = Database(), Database()
    routes = Routes(IDENTITY, lambda: READY, StatusCache(database.public, lambda: 0.0), lambda: b"", 10.0)

    def pages(of: Database) -> OperatorRoutes:
        cache = StatusCache(of.operator, lambda: of.now)
        made = OperatorRoutes(IDENTITY, lambda: READY, routes.failed_checks, cache, of, host="127.0.0.1")
        cache.get()
        return made

    servers = [HttpServer("127.0.0.1", 0, each) for each in (routes, pages(database), pages(gone))]
    gone.away, gone.now = True, 1183.0
    threads = [threading.Thread(target=server.run) for server in servers]
    for thread in threads:
        thread.start()
    public, operator, away = (f"http://127.0.0.1:{server.port}" for server in servers)
    yield {
        "overview": f"{operator}/?reload=off",
        "explain": f"{operator}/explain/{organization_id(3)}",
        "search": f"{operator}/explain?name=web",
        "away": f"{away}/?reload=off",
        "public": f"{public}/",
    }
    for server, thread in zip(servers, threads, strict=True):
        server.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def visits(chromium: str, urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser found on every page at every width, light and dark."""
    folder = Path(os.environ.get("PICTURES") or tmp_path_factory.mktemp("pictures"))
    plan: list[dict[str, Any]] = [
        {"name": "picture", "url": urls["overview"], "width": 1280, "height": 1060, "dark": False, "cropped": True}
    ]
    for name, url in urls.items():
        for device, (width, height) in WIDTHS.items():
            rules = name in {"overview", "explain"} or device == "telephone"
            plan.append({"name": f"{name}-{device}", "url": url, "width": width, "height": height, "rules": rules})
    plan += [
        {"name": f"{name}-dark", "url": urls[name], "width": 1280, "height": 800, "dark": True, "rules": True}
        for name in ("overview", "explain")
    ]
    command = ["node", "check.mjs", chromium, str(folder), json.dumps(plan)]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    if os.environ.get("WRITE_PICTURE"):
        shutil.copyfile(folder / "picture.png", PICTURE)
        PICTURE.with_suffix(".sha256").write_text(f"{page_hash()}  the page's HTML\n", "ascii")
    return {each["name"]: each for each in json.loads(done.stdout)}


def test_no_page_violates_an_accessibility_rule(visits: dict[str, Any]) -> None:
    assert {name: each["violations"] for name, each in visits.items() if each["violations"]} == {}
    assert len([each for each in visits.values() if each["passes"] > 10]) == 11


def test_no_page_scrolls_sideways_at_any_width(visits: dict[str, Any]) -> None:
    assert {name: each["overflow"] for name, each in visits.items() if each["overflow"]} == {}


def test_browser_reports_no_error_and_asks_no_other_server(visits: dict[str, Any]) -> None:
    """An error would be a style that the Content-Security-Policy blocks."""
    # the overview without a database answers 503, which a browser reports
    errors = {name: each["errors"] for name, each in visits.items() if not name.startswith("away")}
    assert {name: each for name, each in errors.items() if each} == {}
    assert {name: each["foreign"] for name, each in visits.items() if each["foreign"]} == {}


def test_first_key_reaches_the_link_that_skips_the_header(visits: dict[str, Any]) -> None:
    assert {each["focused"] for each in visits.values()} == {"skip"}


def test_picture_in_the_readme_shows_the_present_page() -> None:
    """After the page has changed, `make browser` takes a new picture, and stores the page's hash with it."""
    assert PICTURE.with_suffix(".sha256").read_text("ascii").split()[0] == page_hash(), "run `make browser` and commit"


def test_picture_is_taken_of_the_page_whose_hash_is_stored(urls: dict[str, str]) -> None:
    with urllib.request.urlopen(urls["overview"], timeout=10) as answer:  # noqa: S310 - a server of this test
        assert answer.read().decode() == picture()


def page_hash() -> str:
    return hashlib.sha256(picture().encode()).hexdigest()
