-- A leader's claim on the table of the instances that it bills: a second session-level advisory lock, on that table's oid.
-- Controllers with different lock names, or with different search paths, share that table. The key is a pair of integers, so it
-- can't be the key of a lock name, and pg_locks shows it with objsubid 2.

-- name: claim_instances
select pg_try_advisory_lock(%(space)s, to_regclass('vps_instances')::oid::bigint::bit(32)::integer) as claimed

-- name: wait_for_claim
select pg_sleep(0.05)

-- name: claim_holder
-- The session that has claimed the instances, and the keys of the named locks that it holds.
select l.pid, a.application_name, array(
        select (k.classid::bigint << 32) | k.objid::bigint
        from pg_locks k
        where k.pid = l.pid and k.locktype = 'advisory' and k.granted and k.objsubid = 1 and k.database = l.database
    ) as lock_keys
from pg_locks l
join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 2
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = %(space)s::bigint::oid and l.objid = to_regclass('vps_instances')::oid and l.pid <> pg_backend_pid()

-- name: leadership_tables
-- Every billing_leadership that this role may read. Each schema may have one.
select n.nspname as schema
from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relname = 'billing_leadership' and c.relkind = 'r'
    and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
