-- What `doctor` asks about the server and its indexes. These statements only read.

-- name: doctor_server
select current_setting('server_version_num')::int as version_number, current_setting('server_version') as version,
    pg_is_in_recovery() as in_recovery, current_user as role, clock_timestamp() as database_time

-- name: doctor_identity
-- Two sessions with the same answer are in one database on one server.
select pg_postmaster_start_time() as started_at, oid::bigint as database from pg_database where datname = current_database()

-- name: doctor_standbys
-- Standbys wait for the lock on the server, in waits of less than a second.
select count(*) as sessions, count(*) filter (where wait_event_type = 'Lock' and wait_event = 'advisory') as waiting
from pg_stat_activity
where datname = current_database() and application_name like 'billing elector %%'

-- name: doctor_indexes
-- Each index that billing needs, by name or, if a column is given, any whole index that begins with it. A partitioned table
-- counts its partitions' rows.
select w.table_name, coalesce(found.name, w.index_name) as index_name, found.name is not null as present,
    coalesce(found.valid, false) as valid, coalesce(found.scans, 0) as scans, size.rows, size.analyzed
from unnest(%(tables)s::text[], %(indexes)s::text[], %(columns)s::text[]) as w (table_name, index_name, column_name)
cross join lateral (
    select coalesce(sum(greatest(c.reltuples::bigint, s.n_live_tup, 0)), 0)::bigint as rows,
        bool_and(s.last_analyze is not null or s.last_autoanalyze is not null) as analyzed
    from pg_class c
    join pg_stat_all_tables s on s.relid = c.oid
    where c.relkind = 'r' and (c.oid = to_regclass(w.table_name)
        or c.oid in (select p.relid from pg_partition_tree(to_regclass(w.table_name)) p))
) size
left join lateral (
    select i.relname as name, x.indisvalid as valid, s.idx_scan as scans
    from pg_index x
    join pg_class i on i.oid = x.indexrelid
    left join pg_stat_all_indexes s on s.indexrelid = x.indexrelid
    left join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
    where x.indrelid = to_regclass(w.table_name)
        and (i.relname = w.index_name or (x.indpred is null and a.attname = w.column_name))
    order by x.indisvalid desc, s.idx_scan desc nulls last
    limit 1
) found on true
