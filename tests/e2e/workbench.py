"""The workbench: a pod of the project's image, from which the suite reaches the database and the replicas.

The machine that runs the tests may not reach the cluster's addresses, and the cluster may have no DNS.
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
#: Of a statement: by place, or by name.
Parameters = Sequence[Any] | Mapping[str, Any]
#: For what runs inside.
SECONDS: Final = 120.0


class SqlError(Exception):
    """The database refused; `sqlstate` is None when it was not reached."""

    def __init__(self, text: str, sqlstate: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@dataclass(frozen=True)
class Url:
    """A connection string, which holds a password: neither its repr nor a traceback shows it."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    status: int
    stdout: str
    stderr: str

    def read(self) -> Any:  # noqa: ANN401 - whatever the command prints
        """Its standard output as JSON.

        Raises:
            AssertionError: it failed.
        """
        assert self.status == 0, f"status {self.status}: {self.stderr.strip() or self.stdout.strip()}"
        return json.loads(self.stdout)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; status 0 when nobody answered."""

    status: int
    body: str


@dataclass(frozen=True)
class Workbench:
    """What can be done from the pod."""

    kubectl: Kubectl

    def sql(self, url: Url, *statements: tuple[str, Parameters]) -> list[dict[str, Any]]:
        """Statements with their parameters, each in a transaction of its own; the rows of the last.

        Raises:
            SqlError: the database refused one.
            KubectlError: the pod was not reached.
        """
        __tracebackhide__ = True
        answer = self._ask({"do": "sql", "url": url.text, "statements": [list(s) for s in statements]})
        if "error" in answer:
            raise SqlError(answer["error"], answer["sqlstate"])
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Finished:
        """A program of the image."""
        __tracebackhide__ = True
        answer = self._ask(
            {"do": "run", "arguments": list(arguments), "environment": dict(environment), "seconds": SECONDS}
        )
        return Finished(**answer)

    def get(self, url: str) -> Answer:
        """An HTTP request."""
        return Answer(**self._ask({"do": "get", "url": url}))

    def resolves(self, name: str) -> bool:
        """Whether the cluster's DNS knows a name."""
        return bool(self._ask({"do": "resolve", "name": name})["known"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        __tracebackhide__ = True
        printed = self.kubectl.run(
            "exec", "--stdin", POD, "--", "python3", "-c", PROGRAM,
            text=json.dumps(request), seconds=SECONDS + 30,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(printed)
        return answer
