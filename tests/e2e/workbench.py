"""The workbench: a pod of the project's image through which the suite reaches the database and the replicas.

The test machine may have no route to the cluster's addresses, and the cluster may have no DNS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.e2e.kubectl import Kubectl

POD: Final = "workbench"
PROGRAM: Final = Path(__file__).with_name("inside.py").read_text("utf-8")
#: Parameters of a statement, positional or named.
Parameters = Sequence[Any] | Mapping[str, Any]
#: Time limit for a program in the pod.
SECONDS: Final = 120.0


class SqlError(Exception):
    """The database reported an error. `sqlstate` is None if it wasn't reached."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@dataclass(frozen=True)
class Url:
    """A connection string. Its repr hides the text, which contains a password."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """The result of a program."""

    status: int
    stdout: str
    stderr: str

    def read(self) -> Any:  # noqa: ANN401 - whatever the command prints
        """Parses the standard output as JSON.

        Raises:
            AssertionError: the program failed.
        """
        assert self.status == 0, f"status {self.status}: {self.stderr.strip() or self.stdout.strip()}"
        return json.loads(self.stdout)


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response. The status is 0 if there was none."""

    status: int
    body: str


@dataclass(frozen=True)
class Workbench:
    """Runs SQL, programs and HTTP requests from the pod."""

    kubectl: Kubectl

    def sql(self, url: Url, *statements: tuple[str, Parameters]) -> list[dict[str, Any]]:
        """Runs each statement in its own transaction and returns the rows of the last one.

        Raises:
            SqlError: a statement failed.
            KubectlError: the pod wasn't reached.
        """
        __tracebackhide__ = True
        answer = self._ask({"do": "sql", "url": url.text, "statements": [list(s) for s in statements]})
        if "error" in answer:
            raise SqlError(answer["error"], answer["sqlstate"])
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Finished:
        """Runs a program of the image."""
        __tracebackhide__ = True
        answer = self._ask(
            {"do": "run", "arguments": list(arguments), "environment": dict(environment), "seconds": SECONDS}
        )
        return Finished(**answer)

    def get(self, url: str) -> HttpResponse:
        """Sends an HTTP GET."""
        return HttpResponse(**self._ask({"do": "get", "url": url}))

    def resolves(self, name: str) -> bool:
        """True if the cluster's DNS resolves the name."""
        return bool(self._ask({"do": "resolve", "name": name})["known"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        __tracebackhide__ = True
        printed = self.kubectl.run(
            "exec", "--stdin", POD, "--", "python3", "-c", PROGRAM,
            text=json.dumps(request), seconds=SECONDS + 30,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(printed)
        return answer
