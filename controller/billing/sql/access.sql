-- What keeps this role from seeing or writing what billing needs. These statements read only catalogs.

-- name: missing_rights
-- If columns are listed, a right on those columns is enough. An insert also needs the sequences of its columns' defaults.
select w.relname as table_name, w.privilege || ' on ' || case when w.columns = '' then w.relname else w.relname || ' (' || w.columns || ')' end as right
from unnest(%(tables)s::text[], %(privileges)s::text[], %(columns)s::text[]) as w (relname, privilege, columns)
where to_regclass(w.relname) is not null
    and not has_table_privilege(to_regclass(w.relname), w.privilege)
    and (w.columns = '' or not (
        select bool_and(has_column_privilege(to_regclass(w.relname), c.name, w.privilege))
        from unnest(string_to_array(w.columns, ', ')) as c (name)))
union all
select w.relname, 'use the sequence ' || s.name
from unnest(%(tables)s::text[], %(privileges)s::text[]) as w (relname, privilege)
join pg_attribute a on a.attrelid = to_regclass(w.relname) and a.attnum > 0 and a.attidentity = '' and not a.attisdropped
cross join pg_get_serial_sequence(w.relname, a.attname) as s (name)
where w.privilege = 'insert' and not has_sequence_privilege(s.name, 'usage')
order by 1, 2

-- name: not_tables
-- A view or a foreign table may hide rows without an error.
select c.relname as table_name
from pg_class c
where c.oid = any (select to_regclass(t)::oid from unnest(%(tables)s::text[]) as t) and c.relkind not in ('r', 'p')
order by 1

-- name: hidden_rows
-- Tables whose row-level security applies to this role and may hide rows from it. They lack a permissive policy that lets
-- every row through, or have any other policy.
select c.relname as table_name, current_user as role, policies.others
from pg_class c
cross join lateral (
    select count(*) filter (where p.harmless) as harmless,
        coalesce(string_agg(p.polname, ', ' order by p.polname) filter (where not p.harmless), '') as others
    from (
        select p.polname, p.polpermissive and p.polcmd = '*' and pg_get_expr(p.polqual, p.polrelid) = 'true'
            and coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') = 'true' as harmless
        from pg_policy p
        where p.polrelid = c.oid
            and (0 = any (p.polroles) or exists (
                select from unnest(p.polroles) as member (oid) where member.oid <> 0 and pg_has_role(member.oid, 'usage')))
    ) p
) policies
where c.oid = any (select to_regclass(t)::oid from unnest(%(tables)s::text[]) as t)
    and row_security_active(c.oid) and (policies.harmless = 0 or policies.others <> '')
order by 1

-- name: unfit_columns
-- Columns whose type can't hold what billing reads or writes: times to the microsecond, amounts as numeric with enough
-- decimals.
select w.relname as table_name, w.attname as column_name, format_type(a.atttypid, a.atttypmod) as actual, w.wanted
from unnest(%(tables)s::text[], %(columns)s::text[], %(types)s::text[], %(scales)s::int[]) as w (relname, attname, wanted, scale)
join pg_attribute a on a.attrelid = to_regclass(w.relname) and a.attname = w.attname and not a.attisdropped
join pg_type t on t.oid = a.atttypid
where (case when t.typtype = 'd' then t.typbasetype else a.atttypid end) <> to_regtype(w.wanted)
    or (w.wanted = 'timestamptz' and a.atttypmod between 0 and 5)
    or (w.wanted = 'numeric' and a.atttypmod >= 4 and ((a.atttypmod - 4) & 2047) < w.scale)
order by 1, 2

-- name: unknown_price_columns
-- Numeric columns that look like part of a price and that this version does not charge.
select c.relname || '.' || a.attname as name
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
join pg_type t on t.oid = a.atttypid
where c.oid in (to_regclass('vps_plans'), to_regclass('vps_instances')) and t.typcategory = 'N'
    and a.attname ~* '(price|rate|cost|fee)' and a.attname not in ('base_price', 'markup_price')
    and a.attname <> all (%(accepted)s::text[]) and c.relname || '.' || a.attname <> all (%(accepted)s::text[])
order by 1
