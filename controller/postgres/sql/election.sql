-- The lock session. The docstring of controller/election explains what these statements are for.

-- name: try_lock
-- Never uses the blocking pg_advisory_lock: a blocked statement holds a snapshot, which keeps vacuum from cleaning up.
-- The same round trip looks at the session that last held the lock, by its pid, because reading pg_locks every second
-- would cost milliseconds on a server with many locks. The server shows that session's last statement, and when it became
-- idle, only to sessions of the same role.
select pg_try_advisory_lock(%(lock_key)s) as locked, pg_is_in_recovery() as in_recovery, a.pid, a.backend_start,
    a.application_name, starts_with(a.state, 'idle') as idle, a.state_change,
    a.usesysid = (select oid from pg_roles where rolname = session_user) and pg_has_role(a.usesysid, 'usage') as ours,
    substring(a.query from '^/[*] leads for ([0-9]+[.]?[0-9]*) s')::float8 as deadline_seconds,
    (select generation from billing_leadership) as generation,
    billing_without_term(a.pid, a.backend_start, a.application_name, a.usename) as without_term
from (select) as always
left join pg_stat_activity a on a.pid = %(watched_pid)s

-- name: close_leadership
-- Runs before a mint. Batches lock the row `for share` and therefore hold the table in row share mode. Exclusive mode waits
-- for the batches in flight, and later ones queue behind it. A plain update would have no such queue: two overlapping
-- workers of a deposed leader could keep it waiting forever. Reading the table is not affected.
lock table billing_leadership in exclusive mode

-- name: mint_term
-- No row: the database follows the rules of another generation. `former_holder` is null if this is the first term.
with former as (
    select holder, resigned_term = term as resigned from billing_leadership
), minted as (
    update billing_leadership
    set term = term + 1, holder = %(holder)s, lock_name = %(lock_name)s, elected_at = clock_timestamp(),
        backend_pid = pg_backend_pid()
    where generation = %(generation)s
    returning term, holder, elected_at, generation
), recorded as (
    insert into billing_terms (term, holder, minted_at, generation, pod)
    select term, holder, elected_at, generation, %(pod)s::jsonb from minted
)
select m.term, f.holder as former_holder, f.resigned as former_resigned from minted m cross join former f

-- name: former_leader_pods
-- Newest first. Several pods may still carry the label: a leader may be lost before it has relabelled its predecessor's pod.
select pod ->> 'namespace' as namespace, pod ->> 'name' as name, pod ->> 'uid' as uid
from billing_terms
where term < %(term)s and term >= %(term)s - 100 and pod ->> 'uid' is distinct from %(uid)s and pod is not null
group by pod order by max(term) desc limit 8

-- name: ping
-- held is true if this session still holds the lock, on the backend that took it. A migration may have raised the generation,
-- and an operator may have given a command.
select exists (
    select from pg_locks
    where locktype = 'advisory' and granted and pid = pg_backend_pid()
        and database = (select oid from pg_database where datname = current_database())
        and classid = %(lock_high)s::bigint::oid and objid = %(lock_low)s::bigint::oid and objsubid = 1
) as held, pg_backend_pid() as backend_pid, (select generation from billing_leadership) as generation,
    (select max(id) from billing_commands) as newest_command

-- name: evict
-- Ends exactly the session that the standby has watched: the same role, the same backend, idle since the same statement,
-- and still holding this lock. It checks everything again, because another standby may have been faster, and a new leader
-- may hold the lock.
select pg_terminate_backend(a.pid) as ended
from pg_stat_activity a
where a.pid = %(pid)s and a.backend_start = %(began_at)s and a.state_change = %(spoke_at)s
    and starts_with(a.state, 'idle')
    and a.usesysid = (select oid from pg_roles where rolname = session_user) and pg_has_role(a.usesysid, 'usage')
    and exists (
        select from pg_locks l
        where l.locktype = 'advisory' and l.granted and l.pid = a.pid
            and l.database = (select oid from pg_database where datname = current_database())
            and l.classid = %(lock_high)s::bigint::oid and l.objid = %(lock_low)s::bigint::oid and l.objsubid = 1
    )

-- name: listen_for_resignations
-- All lock names share one channel: an unrelated notification costs a standby one attempt.
listen billing_resigned

-- name: record_resignation
-- Commits before the lock is released, so the successor's mint reads it.
update billing_leadership set resigned_term = term where term = %(term)s and holder = %(holder)s

-- name: resign
-- The unlocks take effect at once, and the notification when the statement commits. A standby that it wakes therefore finds
-- both locks free.
select pg_advisory_unlock(%(space)s, to_regclass('vps_instances')::oid::bigint::bit(32)::integer) as unclaimed,
    pg_advisory_unlock(%(lock_key)s) as unlocked, pg_notify('billing_resigned', '')

-- name: lock_holder
-- `without_term` is not null if the session is not the newest term's. It may be a replica that has just been elected.
select pid, application_name,
    billing_without_term(pid, backend_start, application_name, usename) as without_term
from pg_locks l
join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = %(lock_high)s::bigint::oid and l.objid = %(lock_low)s::bigint::oid and l.objsubid = 1

-- name: fence
-- The first statement of every transaction that writes. If it returns no row, the writer is deposed. It locks `for share`
-- and not `for key share`, because a mint changes no key and would not conflict with the weaker lock. It compares the
-- holder too, because a promoted server that lacks the newest terms can mint a term a second time. A batch also needs a
-- heartbeat of this leader: without one, the application bills the same hours. Returns the id of the transaction, so that the
-- writer can find out whether it committed if the connection is lost in the COMMIT.
select term, pg_current_xact_id()::text as transaction_id from billing_leadership
where term = %(term)s and holder = %(holder)s and generation = %(generation)s
    and (not %(needs_heartbeat)s::boolean or exists (
        select from billing_daemon_status s
        where s.daemon_instance_id = %(holder)s::text and s.heartbeat_at > clock_timestamp() - interval '60 minutes'
    )) for share

-- name: has_committed
-- True if the transaction committed. After a failover to another server, an id may be one that has not been assigned yet, and
-- pg_xact_status would raise an error.
select case when %(transaction_id)s::xid8 < pg_snapshot_xmax(pg_current_snapshot())
    then pg_xact_status(%(transaction_id)s::xid8) = 'committed' end is true as committed

-- name: current_term
select term, holder, lock_name, elected_at, generation, needs_version from billing_leadership
