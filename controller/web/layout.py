"""The frame and the parts that every page shares: style, cards, tables. No script, nothing from outside.

Tables become cards on a telephone. The style sheet then changes how rows are displayed, and browsers no longer report
them as rows. Explicit ARIA roles keep them rows for a screen reader.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controller.web.markup import Child, Markup, document, style, tag
from controller.web.style import STYLE


def page(title: str, top: Iterable[Child], main: Iterable[Child], foot: Iterable[Child]) -> str:
    """Returns a page as an HTML document.

    Args:
        title: the title of the browser's tab.
        top: shown beside the program's name.
        main: the content.
        foot: the lines of the footer.
    """
    head = [
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        style(STYLE),
    ]
    brand = tag("p", tag("a", "ContainerStacks billing", href="/"), class_="brand")
    return document(
        head,
        [
            tag("a", "Skip to the content", href="#content", class_="skip"),
            tag("header", brand, top, class_="top"),
            tag("main", main, id="content"),
            tag("footer", foot),
        ],
    )


def card(name: str, value: str, detail: Child, tone: str = "") -> Markup:
    """Returns a fact: its name, its value in large type, and a detail. `tone` is good, wait, bad or empty."""
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, class_=f"value {tone}".strip()),
        tag("dd", detail, class_="detail"),
        class_="card",
    )


def cards(each: Iterable[Markup]) -> Markup:
    return tag("dl", each, class_="cards")


@dataclass(frozen=True)
class Column:
    """A column of a table. Numbers are aligned to the right; short texts are not broken."""

    name: str
    number: bool = False
    short: bool = False

    @property
    def style_class(self) -> str | None:
        return "n" if self.number else "keep" if self.short else None


@dataclass(frozen=True)
class Row:
    """A row of a table. `more` is a line below the cells, across all columns."""

    cells: Sequence[Child]
    more: Child = None


def table(caption: str, columns: Sequence[Column], rows: Iterable[Row]) -> Markup:
    """Returns a table that becomes a list of cards on a narrow screen."""
    head = tag(
        "tr",
        (
            tag("th", each.name, scope="col", role="columnheader", class_="n" if each.number else None)
            for each in columns
        ),
        role="row",
    )
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", head, role="rowgroup"),
        tag("tbody", (_lines(columns, row) for row in rows), role="rowgroup"),
        class_="wide",
        role="table",
    )


def _lines(columns: Sequence[Column], row: Row) -> list[Markup]:
    cells = [
        tag("td", tag("div", cell), role="cell", class_=_style(column, cell), data_label=column.name)
        for column, cell in zip(columns, row.cells, strict=True)
    ]
    if row.more is None:
        return [tag("tr", cells, role="row")]
    more = tag("td", row.more, colspan=len(columns), role="cell", class_="more")
    return [tag("tr", cells, role="row", class_="joined"), tag("tr", more, role="row")]


def _style(column: Column, cell: Child) -> str | None:
    return "blank" if not cell and cell != 0 else column.style_class


def facts(caption: str, rows: Iterable[tuple[str, Child]]) -> Markup:
    """Returns a table of names and values; rows without a value are left out."""
    return tag(
        "table",
        tag("caption", caption),
        tag("tbody", (tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows if value)),
    )


def section(title: str, *content: Child, level: str = "h2") -> Markup:
    return tag("section", tag(level, title), content, class_="panel")


def moment(value: datetime) -> Markup:
    """Returns a time in UTC, to the minute, with the exact one for machines."""
    utc = value.astimezone(UTC)
    return tag("time", f"{utc:%Y-%m-%d %H:%M}", datetime=utc.isoformat(timespec="seconds"), title=f"{utc:%H:%M:%S} UTC")


def plain(text: str) -> str:
    """Returns a reason or an outcome as the beginning of a sentence: `wallet_missing` is `Wallet missing`."""
    return text[:1].upper() + text[1:].replace("_", " ")
