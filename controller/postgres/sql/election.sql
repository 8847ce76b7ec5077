-- The lock session. The docstring of controller/election explains what these statements are for.

-- name: contend
-- The wait holds a snapshot, which keeps vacuum from cleaning up, so it is always shorter than a second. This statement's text
-- begins with the stated deadline, like the ping's: a standby that is frozen in its wait may be handed the lock.
select locked, in_recovery, pid, backend_start, application_name, idle, state_change, ours, deadline_seconds, generation,
    without_term
from billing_contend(%(lock_key)s, %(wait_milliseconds)s, %(watched_pid)s)

-- name: wait_limits
-- Settings that make the server log a wait, each with the longest wait that it doesn't log. log_lock_waits logs a wait after
-- deadlock_timeout.
select name, 0.0008 * setting::float8 as seconds from pg_settings
where (name = 'deadlock_timeout' and current_setting('log_lock_waits')::boolean)
    or (name in ('log_min_duration_statement', 'log_min_duration_sample', 'auto_explain.log_min_duration')
        and setting::integer > 0)
order by seconds

-- name: end_orphaned_batches
-- Ends the former leader's sessions that are inside a batch. They are useless now, and the mint would wait for them, because
-- a server is slow to notice that the client of a running statement was killed. It ends only worker sessions of our role that
-- bear the former leader's name and hold the lock that a fence takes on the table.
select count(pg_terminate_backend(a.pid)) as ended
from pg_locks l
join pg_stat_activity a using (pid)
where l.relation = 'billing_leadership'::regclass and l.mode = 'RowShareLock' and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and a.usesysid = (select oid from pg_roles where rolname = session_user) and pg_has_role(a.usesysid, 'usage')
    and starts_with(a.application_name, 'billing worker ')
    and right(%(former_holder)s, length(a.application_name) - 15) = substr(a.application_name, 16)

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

-- name: record_resignation
-- Commits before the lock is released, so the successor's mint reads it.
update billing_leadership set resigned_term = term where term = %(term)s and holder = %(holder)s

-- name: resign
-- Releases this session's locks before it closes, because the server may take a moment to end it. It unlocks all of them: the
-- same lock is held twice if it was granted as a wait ran out. The claim comes first, so that the next leader finds it free.
select pg_advisory_unlock(%(space)s, to_regclass('vps_instances')::oid::bigint::bit(32)::integer) as unclaimed,
    pg_advisory_unlock_all()

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

-- name: transaction_status
-- 'committed', 'aborted', or 'in progress' while the server is still committing, for example because it waits for a synchronous
-- standby. pg_xact_status refuses an id that the server has not assigned yet. After a failover, the id may
-- come from the former server; its transaction is then lost. Every id below this transaction's own has been assigned.
select case when %(transaction_id)s::xid8 < pg_current_xact_id() then pg_xact_status(%(transaction_id)s::xid8) end as status

-- name: current_term
select term, holder, lock_name, elected_at, generation, needs_version from billing_leadership
