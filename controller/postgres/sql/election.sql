-- The lock session. See the docstring of controller/election for what each of these means.

-- name: try_lock
-- Never the blocking pg_advisory_lock: a blocked statement holds a snapshot and stops vacuum for everyone.
-- In the same round trip, what is to be known of the session that was last found to hold the lock. It is looked up by
-- pid: reading pg_locks each second would cost milliseconds on a server with many locks. What its last statement was and
-- since when it has been idle, the server shows to its own role.
select pg_try_advisory_lock(%(lock_key)s) as locked, pg_is_in_recovery() as in_recovery, a.pid, a.backend_start,
    a.application_name, starts_with(a.state, 'idle') as idle, a.state_change,
    a.usesysid = (select oid from pg_roles where rolname = session_user) and pg_has_role(a.usesysid, 'usage') as ours,
    substring(a.query from '^/[*] leads for ([0-9]+[.]?[0-9]*) s')::float8 as deadline_seconds
from (select) as always
left join pg_stat_activity a on a.pid = %(watched_pid)s

-- name: close_leadership
-- Before a mint: a queue for everyone. Batches lock the row `for share` and so hold this table in row share mode;
-- exclusive mode waits for those under way and, unlike a row lock, is not starved by the ones that come after it:
-- two overlapping workers of a deposed leader could otherwise keep a plain update waiting for ever.
-- Reading the table is not affected.
lock table billing_leadership in exclusive mode

-- name: mint_term
with minted as (
    update billing_leadership
    set term = term + 1, holder = %(holder)s, lock_name = %(lock_name)s, elected_at = clock_timestamp()
    returning term, holder, elected_at
), recorded as (
    insert into billing_terms (term, holder, minted_at)
    select term, holder, elected_at from minted
)
select term from minted

-- name: ping
-- The lock is still ours, on the very backend that took it.
select exists (
    select from pg_locks
    where locktype = 'advisory' and granted and pid = pg_backend_pid()
        and database = (select oid from pg_database where datname = current_database())
        and classid = %(lock_high)s::bigint::oid and objid = %(lock_low)s::bigint::oid and objsubid = 1
) as held, pg_backend_pid() as backend_pid

-- name: evict
-- Only the very session, holding this very lock, idle since its last word as we saw it, and of our own role. Everything
-- is asked again here: another standby may have been faster, and the lock be a new leader's.
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
-- One channel for every lock name: an unrelated notification costs a standby one more try.
listen billing_resigned

-- name: resign
-- The unlock takes effect at once, the notification when the statement commits, so a standby that it wakes finds the
-- lock free.
select pg_advisory_unlock(%(lock_key)s) as unlocked, pg_notify('billing_resigned', '')

-- name: lock_holder
select pid, backend_start, application_name, client_addr::text as client_addr
from pg_locks l
join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted
    and l.database = (select oid from pg_database where datname = current_database())
    and l.classid = %(lock_high)s::bigint::oid and l.objid = %(lock_low)s::bigint::oid and l.objsubid = 1

-- name: fence
-- The first statement of every transaction that writes: no row, and the writer is deposed. `for share`, not
-- `for key share`: a mint changes no key and would pass the weaker lock. The holder as well: on a server that was promoted
-- without the last terms, a number can be given a second time.
select term from billing_leadership where term = %(term)s and holder = %(holder)s for share

-- name: current_term
select term, holder, lock_name, elected_at from billing_leadership
