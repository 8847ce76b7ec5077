-- One billing cycle: when it is due, its plan, its row of history. Its batches are in charge.sql.

-- name: begin_takeover
-- No heartbeat for 90 minutes: the application's own billing may be in the middle of a run, and reads last_billed_at only
-- at its start. The delay is kept here and not in a leader's memory, since the next leader has to respect it too.
update billing_leadership
set bill_after = clock_timestamp() + %(delay_seconds)s * interval '1 second'
where term = %(term)s
    and coalesce(
        (select max(heartbeat_at) from billing_daemon_status) < clock_timestamp() - interval '90 minutes', true)
returning bill_after

-- name: schedule
-- By the database's clock, whoever led the last cycle.
select extract(epoch from greatest(
    (select max(started_at) + %(interval_minutes)s * interval '1 minute' from billing_runs where outcome = 'completed'),
    (select bill_after from billing_leadership),
    clock_timestamp() - interval '1 second'  -- never billed: overdue
) - clock_timestamp())::float8 as seconds_until_due

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
-- as it is charged. A few bytes a batch, whatever the size.
with due as (
    select organization_id, count(*) as instances
    from vps_instances
    where billing_is_due(last_billed_at, created_at, %(as_of)s)
    group by organization_id
), marked as (
    select organization_id, instances, instances > %(batch_size)s as large,
        count(*) filter (where instances > %(batch_size)s) over (order by organization_id) as large_so_far
    from due
), placed as (
    select *,
        sum(instances) filter (where not large) over (order by organization_id) - instances as small_before
    from marked
)
select
    min(organization_id::text collate "C")::uuid as first_organization,
    max(organization_id::text collate "C")::uuid as last_organization,
    sum(instances)::bigint as instances,
    large
from placed
group by large, large_so_far, case when not large then div(small_before, %(batch_size)s) end
order by large desc, 1

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

-- name: history
select id, term, holder, started_at, finished_at, outcome, instances, hours, amount, debts, failures, error
from billing_runs
order by started_at desc, id desc
limit %(limit)s
