-- Finding an organization that can't be charged, and recording the failure.

-- name: due_organizations
-- The due organizations of a batch. A batch that fails is bisected until the organization at fault is alone.
select distinct organization_id
from vps_instances
where organization_id between %(first_organization)s and %(last_organization)s
    and billing_due(last_billed_at, created_at, %(as_of)s)
order by organization_id

-- name: trial_organizations
-- Other due organizations to try alone: a random one from each of `number` equal parts of the plan. The parts alternate between
-- odd and even places. If every other organization fails, some of those that work are tried.
with other as (
    select organization_id, row_number() over (order by organization_id) - 1 as place, count(*) over () as others
    from vps_instances
    where billing_due(last_billed_at, created_at, %(as_of)s)
        and organization_id <> %(organization_id)s
        and organization_id not in (
            select organization_id
            from vps_billing_cycles
            where status = 'failed' and billing_is_ours(metadata) and metadata ->> 'reason' in ('error', 'locked')
                and organization_id is not null)
    group by organization_id
)
select distinct on (place * %(number)s / others) organization_id
from other
order by place * %(number)s / others, mod(place, 2) <> mod(place * %(number)s / others, 2), random()

-- name: record_failed_organization
-- Writes the reason to the open rows of every due instance, and adds an open row without a price for the hours that they
-- don't cover. Recorded prices and amounts don't change. The statement avoids every computation that could fail again.
with due as materialized (
    select i.id, i.organization_id, billing_is_moment(p.starts_at) as start_known,
        case when billing_is_moment(p.starts_at) then p.starts_at else %(as_of)s::timestamptz - interval '1 hour' end as starts_at
    from vps_instances i
    cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) p
    where i.organization_id = %(organization_id)s and billing_due(i.last_billed_at, i.created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(i.created_at, 'infinity'), i.id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
), open_row as materialized (
    select c.id, c.vps_instance_id, c.billing_period_start, c.billing_period_end, c.metadata,
        row_number() over (partition by c.vps_instance_id order by c.billing_period_start desc) = 1
            and jsonb_typeof(c.metadata -> 'monthly_price') is distinct from 'number' as grows
    from due
    join vps_billing_cycles c on c.vps_instance_id = due.id and c.status = 'failed' and billing_is_ours(c.metadata)
), tail as materialized (
    -- The hours after the priced open rows. The last open row is extended if it has no price.
    select due.id, due.organization_id, g.id as row_id, g.starts_at,
        billing_whole_hours(g.starts_at, %(as_of)s) as hours
    from due
    cross join lateral (
        select (array_agg(o.id) filter (where o.grows))[1] as id,
            greatest(due.starts_at, max(case when o.grows then o.billing_period_start else o.billing_period_end end)) as starts_at
        from open_row o
        where o.vps_instance_id = due.id
    ) g
), reason as (
    select %(origin)s::jsonb || jsonb_build_object('reason', %(reason)s::text, 'error', %(error)s::text) as metadata
), updated as (
    update vps_billing_cycles c
    set metadata = c.metadata || r.metadata
        || case when t.row_id is not null then jsonb_build_object('hours', t.hours) else '{}' end,
        billing_period_end = case when t.row_id is not null then t.starts_at + t.hours * interval '1 hour' else c.billing_period_end end
    from reason r, open_row o
    left join tail t on t.row_id = o.id and t.hours > 0
    where c.id = o.id
    returning c.id
), inserted as (
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, metadata)
    select billing_time_ordered_uuid(clock_timestamp()), t.id, t.organization_id, t.starts_at,
        t.starts_at + t.hours * interval '1 hour', 0, 0, 'failed',
        r.metadata || jsonb_build_object('hours', t.hours, 'since', to_jsonb(%(as_of)s::timestamptz))
    from tail t, reason r
    where t.row_id is null and t.hours > 0
    returning id
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, failures, failures_by_reason)
    select %(run_id)s, %(term)s, clock_timestamp(), count(*), jsonb_build_object(%(reason)s::text, count(*)) from due
)
select count(*) as failures,
    (select count(*) from updated) = (select count(*) from open_row)
        and (select count(*) from inserted) = (select count(*) from tail where row_id is null and hours > 0) as consistent
from due

-- name: count_failed_organization
-- Counts an organization's due instances as failures without writing to its rows, because another session keeps them locked.
with failed as (
    select count(*) as failures
    from vps_instances
    where organization_id = %(organization_id)s and billing_due(last_billed_at, created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(created_at, 'infinity'), id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, failures, failures_by_reason)
    select %(run_id)s, %(term)s, clock_timestamp(), failures, jsonb_build_object(%(reason)s::text, failures) from failed
)
select failures from failed

-- name: count_missed
-- Instances that were due at the cycle's start, are still due, and have no open row with a reason. The organizations whose
-- failures could not be recorded are known.
select count(*) as missed
from vps_instances i
where billing_due(i.last_billed_at, i.created_at, %(as_of)s)
    and i.organization_id <> all (%(unrecorded)s::uuid[])
    and not exists (
        select from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata))

-- name: record_missed
-- They belong to the plan, which did not find them.
with planned as (
    update billing_runs set planned = planned + %(missed)s where id = %(run_id)s and term = %(term)s
)
insert into billing_batches (run_id, term, written_at, failures, failures_by_reason)
values (%(run_id)s, %(term)s, clock_timestamp(), %(missed)s, jsonb_build_object('missed', %(missed)s::bigint))
