"""Builds HTML. Every value is escaped unless it is `Markup`, and only this module makes `Markup` from text."""

from collections.abc import Iterable
from decimal import Decimal
from html import escape
from typing import Final, TypeAlias

#: Elements without an end tag.
_VOID: Final = {"br", "input", "link", "meta"}


class Markup(str):
    """HTML that needs no escaping."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Decimal | Iterable[Child] | None"
NOTHING: Final = Markup("")


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """Returns an element.

    Args:
        name: the element's name; a constant of this program, never from outside.
        children: text is escaped; iterables are flattened; None is nothing.
        attributes: a trailing underscore is dropped, and the others become hyphens: `class_`, `aria_label`. An
            attribute whose value is None is left out; an empty string stays.
    """
    head = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{head}>" if name in _VOID else f"<{name}{head}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Returns the children one after the other."""
    return Markup("".join(_text(child) for child in children))


def style(text: str) -> Markup:
    """Returns a style element. The text is a constant of this program, and HTML doesn't unescape it."""
    return Markup(f"<style>{text}</style>")


def document(head: Iterable[Child], body: Iterable[Child]) -> str:
    """Returns a whole document in English."""
    content = tag("html", tag("head", tag("meta", charset="utf-8"), head), tag("body", body), lang="en")
    return f"<!doctype html>{content}\n"


def _text(child: Child) -> str:
    match child:
        case None:
            return ""
        case Markup():
            return child
        case str() | int() | float() | Decimal():
            return escape(str(child), quote=True)
        case _:
            return join(child)
