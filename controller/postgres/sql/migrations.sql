-- The statements of the migration runner. The migrations themselves are in the top-level folder migrations/.

-- name: columns_of_tables
select r.relname, array_agg(a.attname::text) as columns
from pg_class r
join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
where r.oid = any (select to_regclass(t)::oid from unnest(%(tables)s::text[]) as t)
group by r.relname

-- name: migrations_table_exists
-- Reads the catalog directly: to_regclass can answer from a cache that predates another process's migration.
select exists (
    select from pg_class where relname = 'billing_schema_migrations' and pg_table_is_visible(oid)
) as made

-- name: applied_migrations
select name from billing_schema_migrations

-- name: try_lock_migrations
select pg_try_advisory_lock(%(lock_key)s) as locked

-- name: unlock_migrations
select pg_advisory_unlock(%(lock_key)s) as unlocked

-- name: leading_index_exists
-- True if a valid index without a predicate begins with this column.
select exists (
    select from pg_index x
    join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
    where x.indrelid = to_regclass(%(table)s::text) and a.attname = %(column)s::text and x.indpred is null and x.indisvalid
) as found

-- name: invalid_index
select x.indexrelid::regclass::text as name
from pg_index x
join pg_class c on c.oid = x.indexrelid
where x.indrelid = to_regclass(%(table)s::text) and c.relname = %(index)s::text and not x.indisvalid

-- name: is_partitioned
select exists (select from pg_class where oid = to_regclass(%(table)s::text) and relkind = 'p') as partitioned

-- name: partitions
-- The partitions that hold rows, at any depth. A foreign table can't be indexed from here.
select c.oid::bigint as oid, c.oid::regclass::text as name
from pg_partition_tree(to_regclass(%(table)s::text)) p
join pg_class c on c.oid = p.relid
where p.level > 0 and p.isleaf and c.relkind = 'r'
order by c.oid

-- name: wrong_state_tables
-- Tables that should hold exactly one row and don't. The price check has none before the first cycle.
select name, found
from (values
    ('billing_leadership', (select count(*) from billing_leadership), 1),
    ('billing_guard', (select count(*) from billing_guard), 1),
    ('billing_price_check', (select count(*) from billing_price_check), 0)
) as t (name, found, least)
where found not between least and 1

-- name: lock_state_tables
lock table billing_leadership, billing_guard, billing_price_check in access exclusive mode

-- name: remove_doubled_leadership
delete from billing_leadership
where ctid <> (select ctid from billing_leadership order by generation desc, term desc limit 1)

-- name: remove_doubled_guard
-- Keeps the earlier row, so that no charge stays unchecked.
delete from billing_guard where ctid <> (select ctid from billing_guard order by checked_until limit 1)

-- name: remove_doubled_price_check
delete from billing_price_check where ctid <> (select ctid from billing_price_check order by checked_at desc limit 1)

-- name: restore_leadership
-- Restores the newest term found in any table. billing_terms may have been emptied too, so runs and charges count as well.
with newest as (
    select greatest(
        (select max(term) from billing_terms),
        (select max(term) from billing_runs),
        (select max((metadata ->> 'term')::bigint) from vps_billing_cycles
         where billing_is_ours(metadata) and jsonb_typeof(metadata -> 'term') = 'number'),
        0) as term
)
insert into billing_leadership (term, holder, elected_at, generation, needs_version)
select n.term, t.holder, t.minted_at, coalesce((select max(generation) from billing_terms), %(generation)s), %(version)s
from newest n left join billing_terms t on t.term = n.term
where not exists (select from billing_leadership)

-- name: restore_guard
-- Makes the guard check every charge since the first term again.
insert into billing_guard (checked_until)
select coalesce(min(minted_at), now()) from billing_terms
having not exists (select from billing_guard)

-- name: state_tables_without_key
select c.relname as name
from pg_class c
where c.oid in (to_regclass('billing_leadership'), to_regclass('billing_guard'), to_regclass('billing_price_check'))
    and not exists (select from pg_index x where x.indrelid = c.oid and x.indisprimary)
