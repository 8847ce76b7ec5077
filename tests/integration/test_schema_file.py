"""migrations/schema.sql shows what the migrations make."""

import pytest

from controller.postgres.migrations import available
from tests.support import uninstall
from tests.support.schema import FILE, current, normalized
from tests.support.servers import Server


def test_schema_file_is_current(server: Server) -> None:
    assert FILE.read_text("utf-8") == current(server), "run `make schema`"


def test_uninstall_lists_everything_in_the_schema_file() -> None:
    assert uninstall.FILE.read_text("utf-8") == uninstall.current(), "run `make schema`"


def test_schema_file_is_not_a_migration() -> None:
    assert FILE.is_file()
    assert FILE.stem not in {migration.name for migration in available()}


def view(text: str) -> str:
    return f"--\n-- Name: a; Type: VIEW; Schema: public; Owner: -\n--\n\nCREATE VIEW public.a AS\n{text};\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (" SELECT f.x,\n    f.y\n   FROM public.f() f(x, y)", " SELECT x,\n    y\n   FROM f() f(x, y)"),
        (" SELECT t.x\n   FROM public.t\n  WHERE (t.x > 0)", " SELECT x\n   FROM t\n  WHERE (x > 0)"),
        (" SELECT EXTRACT(epoch FROM t.x) AS x\n   FROM public.t", " SELECT EXTRACT(epoch FROM x) AS x\n   FROM t"),
    ],
)
def test_view_on_one_source_reads_the_same_before_and_after_version_16(before: str, after: str) -> None:
    assert normalized(view(before)) == normalized(view(after)) == f"CREATE VIEW a AS\n{after};\n"


def test_view_on_two_sources_keeps_its_qualifiers() -> None:
    text = " SELECT t.x,\n    u.x AS y\n   FROM t,\n    u"
    assert normalized(view(text)) == f"CREATE VIEW a AS\n{text};\n"
