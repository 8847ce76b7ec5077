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
