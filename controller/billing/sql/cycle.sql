-- One billing cycle: when it is due, its plan, its row of history. Its batches are in charge.sql.

-- name: begin_term
-- Needs the fence. Records the leader's interval, which the schedule follows. If no heartbeat is younger than 90 minutes,
-- the application's own billing may be in the middle of a run, and it reads last_billed_at only at its start: then no
-- cycle starts before the delay has passed. The next leader has to respect the delay too, so it is kept here.
with heartbeat as (
    select coalesce(max(heartbeat_at) < clock_timestamp() - interval '90 minutes', true) as stale
    from billing_daemon_status
)
update billing_leadership l
set interval_minutes = %(interval_minutes)s,
    bill_after = case when h.stale then clock_timestamp() + %(delay_seconds)s * interval '1 second' else l.bill_after end
from heartbeat h
returning h.stale as takeover

-- name: seconds_until_due
-- By the database's clock, whichever replica led the last cycle. Negative once the cycle is due.
select coalesce(extract(epoch from due_at - clock_timestamp()), -1)::float8 as seconds
from billing_next_cycle()

-- name: close_abandoned_runs
-- Runs of leaders that are gone: their figures are what their batches committed.
update billing_runs r
set outcome = 'abandoned', finished_at = clock_timestamp(),
    error = 'leader of term ' || r.term || ' was lost before the cycle ended',
    instances = b.instances, hours = b.hours, amount = b.amount, debts = b.debts, failures = b.failures
from billing_runs running
cross join lateral (
    select coalesce(sum(instances), 0) as instances, coalesce(sum(hours), 0) as hours,
        coalesce(sum(amount), 0) as amount, coalesce(sum(debts), 0) as debts, coalesce(sum(failures), 0) as failures
    from billing_batches
    where run_id = running.id
) b
where r.id = running.id and running.outcome = 'running' and running.term <= %(term)s

-- name: begin_run
insert into billing_runs (term, holder, started_at)
values (%(term)s, %(holder)s, clock_timestamp())
returning id, started_at

-- name: plan_cycle
-- The batches: ranges of organizations that hold about batch_size due instances each, in the one global order. An
-- organization larger than a batch stands alone, comes first, since it takes one worker several transactions, and is split
-- as it is charged. One that an earlier cycle could not charge stands alone and comes last, to delay no other. A few bytes
-- a batch, whatever the size.
with due as (
    select organization_id, count(*) as instances
    from vps_instances
    where billing_due(last_billed_at, created_at, %(as_of)s)
    group by organization_id
), failed_before as materialized (
    select distinct organization_id
    from vps_billing_cycles
    where status = 'failed' and billing_is_ours(metadata) and metadata ->> 'reason' in ('error', 'locked')
), marked as (
    select due.*, instances > %(batch_size)s as large, f.organization_id is not null as failed_before
    from due left join failed_before f on f.organization_id = due.organization_id
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
group by large, failed_before, alone_so_far, case when not large and not failed_before then div(small_before, %(batch_size)s) end
order by failed_before, large desc, 1

-- name: finish_run
update billing_runs r
set outcome = %(outcome)s, finished_at = clock_timestamp(), error = %(error)s,
    instances = b.instances, hours = b.hours, amount = b.amount, debts = b.debts, failures = b.failures
from (
    select coalesce(sum(instances), 0) as instances, coalesce(sum(hours), 0) as hours,
        coalesce(sum(amount), 0) as amount, coalesce(sum(debts), 0) as debts, coalesce(sum(failures), 0) as failures
    from billing_batches
    where run_id = %(run_id)s
) b
where r.id = %(run_id)s and r.term = %(term)s
returning r.instances, r.hours, r.amount, r.debts, r.failures

-- name: prune_history
-- What a run's figures were added up from is not needed once the run has ended; runs themselves are kept.
delete from billing_batches
where written_at < now() - %(retention_days)s * interval '1 day'
    and id < (select min(b.id) + 100000 from billing_batches b)
