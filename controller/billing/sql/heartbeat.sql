-- billing_daemon_status, which the application reads. Only the leader writes it.

-- name: heartbeat
-- The last run's totals come from the run history, whichever replica led it, so they survive a stop, a handover and a crash.
-- It reads the term without locking it, because a heartbeat must not wait for a batch.
insert into billing_daemon_status as s
    (daemon_instance_id, status, last_run_at, last_run_success, instances_billed, total_amount, total_hours,
     error_message, started_at, heartbeat_at, metadata, updated_at)
select %(instance_id)s::text, case when n.message is not null or r.outcome = 'failed' then 'error' else 'running' end,
    r.started_at, billing_is_successful(r.outcome), coalesce(r.instances, 0), coalesce(r.amount, 0), coalesce(r.hours, 0),
    coalesce(n.message, r.error), %(started_at)s, clock_timestamp(), %(metadata)s, clock_timestamp()
from billing_leadership l
left join billing_last_cycle() r on true
left join lateral (select message from billing_notices() where halts limit 1) n on true
where l.term = %(term)s and l.holder = %(instance_id)s::text and l.generation = %(generation)s
    and clock_timestamp() < billing_beats_until()
on conflict (daemon_instance_id) do update
set status = excluded.status, last_run_at = excluded.last_run_at, last_run_success = excluded.last_run_success,
    instances_billed = excluded.instances_billed, total_amount = excluded.total_amount,
    total_hours = excluded.total_hours, error_message = excluded.error_message, started_at = excluded.started_at,
    heartbeat_at = excluded.heartbeat_at, metadata = excluded.metadata, updated_at = excluded.updated_at
where billing_is_our_status(s.metadata)
returning s.heartbeat_at

-- name: heartbeat_withheld
-- Returns why the heartbeat statement wrote nothing. overdue_minutes is null if this replica does not lead, or if another
-- daemon is alive. The biller reports the daemon.
select case when l.term = %(term)s and l.holder = %(instance_id)s::text and l.generation = %(generation)s
        and isfinite(billing_beats_until())
    then extract(epoch from clock_timestamp() - billing_beats_until())::float8 / 60 + 90 end as overdue_minutes
from billing_leadership l

-- name: begin_heartbeat
-- The first heartbeat of a cycle, in the transaction that begins its run. If billing has been overdue for too long, the leader
-- must show that it can write its row, but doesn't refresh the heartbeat. The application's own billing must be able to start
-- if this cycle fails too.
-- Never writes to a row of another daemon with the same name.
insert into billing_daemon_status as s (daemon_instance_id, status, started_at, heartbeat_at, metadata, updated_at)
select %(instance_id)s::text, 'running', clock_timestamp(),
    case when clock_timestamp() < billing_beats_until() then clock_timestamp()
        else (select max(heartbeat_at) from billing_daemon_status) end,
    jsonb_build_object('term', l.term), clock_timestamp()
from billing_leadership l
on conflict (daemon_instance_id) do update
set heartbeat_at = excluded.heartbeat_at, metadata = coalesce(s.metadata, '{}') || excluded.metadata, updated_at = excluded.updated_at
where billing_is_our_status(s.metadata)
returning coalesce(s.heartbeat_at > clock_timestamp() - interval '60 minutes', false) as fresh

-- name: mark_stopped
-- Writes the last run's totals, but does not change heartbeat_at. A newer heartbeat would hold back the application's own
-- billing although this controller has stopped.
update billing_daemon_status s
set status = 'stopped', updated_at = clock_timestamp(), last_run_at = coalesce(r.started_at, s.last_run_at),
    last_run_success = coalesce(billing_is_successful(r.outcome), s.last_run_success),
    instances_billed = coalesce(r.instances, s.instances_billed), total_amount = coalesce(r.amount, s.total_amount),
    total_hours = coalesce(r.hours, s.total_hours), error_message = case when r.id is null then s.error_message else r.error end
from billing_leadership l
left join billing_last_cycle() r on true
where s.daemon_instance_id = %(instance_id)s::text and l.term = %(term)s and l.holder = %(instance_id)s::text
    and billing_is_our_status(s.metadata)

-- name: close_other_statuses
-- A new leader knows that no other replica leads, so a replica's row that still says `running` is out of date. Leaves the rows of
-- other daemons alone.
update billing_daemon_status
set status = 'stopped', updated_at = clock_timestamp()
where daemon_instance_id <> %(instance_id)s::text and status <> 'stopped' and billing_is_our_status(metadata)
    and exists (select from billing_leadership where term = %(term)s and holder = %(instance_id)s::text)

-- name: prune_statuses
delete from billing_daemon_status
where daemon_instance_id <> %(instance_id)s::text and billing_is_our_status(metadata)
    and coalesce(heartbeat_at, updated_at, created_at) < clock_timestamp() - %(retention_days)s * interval '1 day'
