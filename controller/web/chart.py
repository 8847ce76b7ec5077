"""The chart of the last day's cycles: amounts, durations and failures over one axis of time, as SVG.

A bar ends at the start of its cycle: it covers the hours that the cycle charged. A gap is an hour without a cycle, and
a tinted column is a cycle that failed. The drawing is stretched to the width of the page, so its texts are HTML. A
table holds the same numbers for screen readers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controller.web.layout import Column, Row, moment, table
from controller.web.markup import Child, Markup, tag

HOURS: Final = 24
#: Units of the drawing: a minute is one unit wide.
WIDTH: Final = HOURS * 60
HEIGHT: Final = 100
#: Bars are never narrower than the bins of `billing_last_day`, less a gap.
BIN_MINUTES: Final = 15
#: The distance of two labels of the axis.
LABEL_HOURS: Final = 4

Cycle = Mapping[str, Any]


def day_chart(day: Sequence[Cycle], now: datetime, interval_minutes: float, currency: str) -> Markup:
    """Returns the bars, the axis and the table.

    Args:
        day: rows of `billing_last_day`.
        now: the end of the axis, by the database's clock.
        interval_minutes: time between two cycles, from which the width of a bar follows.
        currency: the currency of the amounts.
    """
    if not day:
        return tag("p", "No cycle has run in the last 24 hours.", class_="soft")
    width = min(max(interval_minutes, BIN_MINUTES), 60.0) * 0.8
    total = sum(float(each["amount"]) for each in day)
    failed = sum(1 for each in day if each["failed"])
    highest = max(each["amount"] for each in day)
    longest = max(each["seconds"] or 0 for each in day)
    most = max(each["failures"] for each in day)
    series = (
        _Series(
            f"Amount of each cycle, {currency}",
            f"highest {highest:,.2f}, together {total:,.2f}",
            ("amount", "collected"),
            ("amount", "collected"),
        ),
        _Series("Duration, seconds", f"longest {longest:.1f}", ("seconds",), ("seconds",), low=True),
        _Series("Instances that failed", f"most {most:,}", ("failures",), ("failures",), low=True),
    )
    drawings = (_drawing(each, day, now, width) for each in series)
    return tag("div", drawings, _axis(now), _legend(day, failed), _numbers(day, currency))


@dataclass(frozen=True)
class _Series:
    """One row of bars.

    Attributes:
        name: what the bars show.
        summary: the largest value.
        fields: the height of a bar, and then the heights of parts of it.
        classes: the style of each field.
        low: True for a row that needs less height.
    """

    name: str
    summary: str
    fields: tuple[str, ...]
    classes: tuple[str, ...]
    low: bool = False


def _drawing(series: _Series, day: Sequence[Cycle], now: datetime, width: float) -> Markup:
    highest = max(_value(each, series.fields[0]) for each in day)
    bars = []
    for each in day:
        left = _position(each["starts_at"], now) - width
        value = f"{_value(each, series.fields[0]):,.2f}".removesuffix(".00")
        shown = f"{each['starts_at'].astimezone(UTC):%H:%M}: {value}"
        if each["failed"]:
            bars.append(_bar(left - width * 0.1, width * 1.2, HEIGHT, "failed", f"{shown}, failed"))
        for name, style in zip(series.fields, series.classes, strict=True):
            if (height := _value(each, name)) > 0:
                bars.append(_bar(left, width, HEIGHT * 0.95 * height / highest, style, shown))
    drawing = tag(
        "svg",
        bars,
        role="img",
        aria_label=f"{series.name}: {series.summary}",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
    )
    head = tag("p", tag("span", series.name), tag("span", series.summary), class_="head")
    return tag("div", head, drawing, class_="series low" if series.low else "series")


def _value(cycle: Cycle, name: str) -> float:
    return float(cycle[name] or 0)


def _bar(left: float, width: float, height: float, style: str, shown: str) -> Markup:
    # a bar of a tiny value stays visible
    height = max(height, 1.5)
    return tag(
        "rect",
        tag("title", shown),
        x=f"{left:.1f}",
        y=f"{HEIGHT - height:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        class_=style,
    )


def _position(begins: datetime, now: datetime) -> float:
    return WIDTH - (now - begins).total_seconds() / 60


def _axis(now: datetime) -> Markup:
    labels = [f"{now - timedelta(hours=hours):%H:%M}" for hours in range(HOURS, 0, -LABEL_HOURS)]
    return tag("div", (tag("span", each) for each in [*labels, f"{now:%H:%M} UTC"]), class_="axis", aria_hidden="true")


def _legend(day: Sequence[Cycle], failed: int) -> Child:
    parts: list[Child] = []
    if any(each["collected"] for each in day):
        parts += [_key("amount"), "cycles ", _key("collected"), "debts collected between cycles "]
    if failed:
        parts += [_key("failed"), "failed cycle"]
    return tag("p", parts, class_="soft legend") if parts else None


def _key(style: str) -> Markup:
    return tag("span", class_=f"key {style}")


def _numbers(day: Sequence[Cycle], currency: str) -> Markup:
    columns = (
        Column("Started (UTC)", short=True),
        Column("Cycles", number=True),
        Column("Instances", number=True),
        Column("Hours", number=True),
        Column(f"Amount ({currency})", number=True),
        Column("Seconds", number=True),
        Column("Debts", number=True),
        Column("Failures", number=True),
    )
    rows = [
        Row(
            (
                moment(each["starts_at"]),
                each["cycles"],
                each["instances"],
                each["hours"],
                f"{each['amount']:,.2f}",
                f"{each['seconds'] or 0:.1f}",
                each["debts"],
                each["failures"],
            )
        )
        for each in reversed(day)
    ]
    return tag("details", tag("summary", "The same as a table"), table("Cycles of the last 24 hours", columns, rows))
