"""Describes a database's schema as text, so that two databases can be compared."""

from __future__ import annotations

import psycopg

_QUERY = b"""
select concat_ws(' ', table_name, column_name, data_type, numeric_precision, numeric_scale, column_default, is_nullable)
from information_schema.columns where table_schema = 'public'
union all
select concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
from pg_constraint where connamespace = 'public'::regnamespace
union all
select concat_ws(' ', pg_get_indexdef(x.indexrelid), x.indisvalid)
from pg_index x join pg_class c on c.oid = x.indexrelid
where c.relnamespace = 'public'::regnamespace
    -- `psql -f` creates them even if the application has the same
    and c.relname !~ '^billing_(vps_instances|wallets|payment_transactions)_organization$'
union all
select pg_get_functiondef(oid)
from pg_proc where pronamespace = 'public'::regnamespace and prokind = 'f' and proname like 'billing%'
union all
select concat_ws(' ', viewname, definition) from pg_views where schemaname = 'public'
order by 1
"""


def shape(url: str) -> list[str]:
    """Returns columns, constraints, indexes, functions and views, one a line."""
    with psycopg.connect(url) as connection:
        return [line for (line,) in connection.execute(_QUERY)]
