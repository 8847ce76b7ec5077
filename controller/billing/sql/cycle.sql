-- One billing cycle: when it is due, its plan, and its row in the history. covered.sql and ordered.sql charge its batches.

-- name: begin_term
-- Needs the fence. Records the settings of the leader that everyone must know: the schedule follows the interval. `silent` is
-- true if no heartbeat is younger than 90 minutes, because the application's own billing may be running then. A heartbeat in
-- the future proves nothing: the clock of another daemon's host may be wrong by hours. Our own heartbeats use the database's
-- clock, which may have been set back. `after_other` is true if the newest heartbeat is another daemon's. `waits_until` is the
-- end of a takeover's delay that an earlier leader began and that has not passed.
update billing_leadership
set interval_minutes = %(interval_minutes)s, other_billers = %(other_billers)s
returning (
    select count(*) = 0 from billing_daemon_status
    where heartbeat_at > clock_timestamp() - interval '90 minutes'
        and heartbeat_at < clock_timestamp()
            + case when billing_is_our_status(metadata) then interval '90 minutes' else interval '3 minutes' end
) as silent, coalesce((
    select not billing_is_our_status(metadata) from billing_daemon_status
    where heartbeat_at is not null order by heartbeat_at desc limit 1
), false) as after_other,
    case when takeover_delay_seconds is not null and bill_after > clock_timestamp() then bill_after end as waits_until

-- name: begin_takeover
-- Needs the fence. The application's own billing may be in the middle of a run, and it reads last_billed_at only when it
-- starts. So no cycle may start before the takeover delay has passed. The end of the delay is stored, because the next leader
-- has to respect it too. A delay that is still running is not shortened.
update billing_leadership
set bill_after = greatest(
        clock_timestamp() + %(delay_seconds)s * interval '1 second',
        case when takeover_delay_seconds is not null then bill_after end),
    takeover_delay_seconds = greatest(%(delay_seconds)s, takeover_delay_seconds)
returning bill_after

-- name: takeover_wait
-- No row unless a takeover's delay is running.
select bill_after as until, extract(epoch from bill_after - clock_timestamp())::float8 as seconds
from billing_leadership
where bill_after > clock_timestamp()

-- name: seconds_until_due
-- By the database's clock, and independent of the replica that led the last cycle. Negative once the cycle is due.
select coalesce(extract(epoch from billing_cycle_due_at() - clock_timestamp()), -1)::float8 as seconds

-- name: close_abandoned_runs
-- Closes runs whose leader has not recorded their end, usually because it was lost. Their figures are what their batches committed.
-- Reopens a `trigger` command that such a run had taken, so that another cycle carries it out.
with closed as (
    update billing_runs r
    set outcome = 'abandoned', finished_at = clock_timestamp(),
        error = 'the leader of term ' || r.term || ' did not record the end of the ' || r.kind || ': it was lost, or could not write',
        instances = b.instances, charged_in_part = b.charged_in_part, hours = b.hours, amount = b.amount, debts = b.debts,
        failures = b.failures, failures_by_reason = b.failures_by_reason, suspended = b.suspended
    from billing_runs running
    cross join lateral billing_run_totals(running.id) b
    where r.id = running.id and running.outcome = 'running' and running.term <= %(term)s
    returning r.id
)
update billing_commands set run_id = null, finished_at = null
where command = 'trigger' and run_id in (select id from closed)

-- name: begin_run
-- late_seconds is the time since the run was due, without a takeover's wait. It is null for the first run, and if the cycle before
-- did not get through: what that one has left is overdue, however soon another leader continues.
insert into billing_runs (term, holder, started_at)
values (%(term)s, %(holder)s, clock_timestamp())
returning id, started_at, (
    select extract(epoch from clock_timestamp() - max(r.started_at) - l.interval_minutes * interval '1 minute')::float8
    from billing_leadership l, billing_runs r
    where r.kind = 'cycle' and billing_got_through(r.outcome, r.cause)
    group by l.interval_minutes
    having (
        select billing_got_through(newest.outcome, newest.cause) from billing_runs newest
        where newest.kind = 'cycle'
        order by newest.id desc
        limit 1
    )
) as late_seconds

-- name: preview_run
-- The run that a dry run pretends to be. It adds no row: a row with the next number would block the
-- leader's next cycle until this transaction has been rolled back.
select billing_next_run() as id, clock_timestamp() as started_at, null::float8 as late_seconds

-- name: plan_cycle
-- Returns the batches: ranges of organizations with about batch_size due instances each, in the one global order. An
-- organization larger than a batch gets a separate batch, which is charged in several transactions. These batches come first,
-- because only one worker can charge each. An organization that an earlier cycle could not charge also gets a separate batch.
-- These batches come last, so that they delay no others. The first of the other batches has about 100 instances, so that the first
-- charge after a failover doesn't wait for a full batch. The result has one short row for each batch.
with due as (
    select organization_id, count(*) as instances
    from vps_instances
    where billing_due(last_billed_at, created_at, %(as_of)s)
    group by organization_id
), marked as (
    select due.*, instances > %(batch_size)s as large, f.organization_id is not null as failed_before
    from due left join billing_failed_before() f on f.organization_id = due.organization_id
), counted as (
    select *, count(*) filter (where large or failed_before) over (order by organization_id) as alone_so_far
    from marked
), placed as (
    select *,
        sum(instances) filter (where not large and not failed_before) over (order by organization_id) - instances as small_before
    from counted
)
select
    min(organization_id::text collate "C")::uuid as first_organization,
    max(organization_id::text collate "C")::uuid as last_organization,
    sum(instances)::bigint as instances,
    large,
    failed_before
from placed
group by large, failed_before, alone_so_far,
    case when large or failed_before then null when small_before < least(100, %(batch_size)s) then -1
        else div(small_before, %(batch_size)s) end
order by failed_before, large desc, 1

-- name: record_plan
update billing_runs set planned = %(planned)s where id = %(run_id)s and term = %(term)s

-- name: finish_run
-- If the cycle got through its plan, planned instances that no batch counted have vanished.
update billing_runs r
set outcome = %(outcome)s, cause = %(cause)s, finished_at = clock_timestamp(), error = %(error)s,
    instances = b.instances, charged_in_part = b.charged_in_part, hours = b.hours, amount = b.amount, debts = b.debts,
    failures = b.failures, failures_by_reason = b.failures_by_reason, suspended = b.suspended,
    vanished = case when billing_got_through(%(outcome)s, %(cause)s)
        then r.planned - (b.instances + b.debts - b.charged_in_part + b.failures + b.suspended) end
from billing_run_totals(%(run_id)s) b
where r.id = %(run_id)s
returning r.instances, r.hours, r.amount, r.debts, r.failures, r.suspended

-- name: prune_history
-- Deletes the batches of runs that ended long ago, because the runs hold their sums. Runs are never deleted.
delete from billing_batches
where written_at < now() - %(retention_days)s * interval '1 day'
    and id < (select min(b.id) + 100000 from billing_batches b)
