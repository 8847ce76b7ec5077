"""What `--help` says about the environment, from the descriptions in controller/settings.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from controller.settings import PLATFORM, Settings


@dataclass(frozen=True)
class Setting:
    """A setting as people see it. `name` is its variable; `description` is Markdown."""

    name: str
    group: str
    default: str
    description: str

    @property
    def summary(self) -> str:
        """The first sentence, as plain text without its full stop."""
        return self.description.partition(". ")[0].removesuffix(".").replace("`", "")


def described() -> Iterator[Setting]:
    """Every setting, in the order of the fields, which keeps the groups together."""
    return (_described(field) for field in Settings.model_fields.values())


def environment() -> str:
    """A line for each setting that a person may set, under a heading for each group."""
    lines = ["Environment (a .env file is read too; docs/configuration.md has the details):"]
    for group, members in groupby(
        (each for each in described() if each.group != PLATFORM), key=lambda each: each.group
    ):
        lines += ["", f"{group}:"]
        lines += [f"  {each.name:<31}  {each.summary} ({each.default.replace('`', '')})" for each in members]
    return "\n".join(lines)


def _described(field: FieldInfo) -> Setting:
    alias, extra = field.validation_alias, field.json_schema_extra
    if not isinstance(alias, AliasChoices) or not isinstance(extra, dict) or not field.description:
        raise TypeError("a field of Settings is not declared with _setting()")
    default = extra["shown_default"] or _constant(field.default)
    return Setting(str(alias.choices[0]), str(extra["group"]), str(default), field.description)


def _constant(default: Any) -> str:  # noqa: ANN401 - of any type
    return f"{default:g}" if isinstance(default, float) else str(default)
