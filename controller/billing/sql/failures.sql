-- Finding an organization that can't be charged, and recording the failure.

-- name: due_organizations
-- The due organizations of a batch. A batch that fails is bisected until the organization at fault is alone.
select distinct organization_id
from vps_instances
where organization_id between %(first_organization)s and %(last_organization)s
    and billing_due(last_billed_at, created_at, %(as_of)s)
order by organization_id

-- name: sample_organizations
-- Due organizations to try alone: a random one from each of `number` equal parts of the plan. The parts alternate between odd
-- and even places, so that some sound organizations are tried even if every second one fails. The sample leaves out suspended
-- organizations. It also leaves out those that an earlier cycle could not charge, unless no others are due and no organization has
-- failed in this cycle.
with due as materialized (
    select i.organization_id, f.organization_id is not null as failed_before
    from vps_instances i
    left join billing_failed_before() f on f.organization_id = i.organization_id
    where billing_due(i.last_billed_at, i.created_at, coalesce(%(as_of)s::timestamptz, now()))
        and i.organization_id is distinct from %(without)s::uuid and i.organization_id is not null
        and not exists (
            select from billing_suspensions s
            where s.organization_id = i.organization_id and (s.until is null or s.until > now()))
    group by i.organization_id, f.organization_id
), candidate as (
    select organization_id, row_number() over (order by organization_id) - 1 as place, count(*) over () as candidates
    from due
    where not failed_before or (%(without)s::uuid is null and not exists (select from due where not failed_before))
)
select distinct on (place * %(number)s / candidates) organization_id
from candidate
order by place * %(number)s / candidates, mod(place, 2) <> mod(place * %(number)s / candidates, 2), random()

-- name: record_failed_organization
-- Writes the reason to the open rows of every due instance, and adds an open row without a price for the hours that they
-- don't cover. Recorded prices don't change. Hours that have since been billed are cut off, as in billing_segments. The
-- statement avoids every computation that could fail again.
with due as materialized (
    select s.*, greatest(billing_whole_hours(s.starts_at, %(as_of)s), 0) as hours
    from (
        select i.id, i.organization_id, case when billing_is_moment(p.starts_at) then p.starts_at
            else %(as_of)s::timestamptz - interval '1 hour' end as starts_at
        from vps_instances i
        cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) p
        where i.organization_id = %(organization_id)s and billing_due(i.last_billed_at, i.created_at, %(as_of)s)
            and (%(after_id)s::uuid is null or (coalesce(i.created_at, 'infinity'), i.id)
                > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    ) s
), open_row as materialized (
    -- hours are counted from the end of what has been billed
    select c.id, due.id as instance_id, c.billing_period_start, c.billing_period_end,
        case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number' then (c.metadata ->> 'monthly_price')::numeric end as monthly_price,
        least(billing_hours_until(due.starts_at, c.billing_period_start), due.hours) as first_hour,
        least(billing_hours_until(due.starts_at, c.billing_period_end), due.hours) as end_hour,
        row_number() over (partition by due.id order by c.billing_period_start desc) = 1
            and jsonb_typeof(c.metadata -> 'monthly_price') is distinct from 'number' as grows
    from due
    join vps_billing_cycles c on c.vps_instance_id = due.id and c.status = 'failed' and billing_is_ours(c.metadata)
), tail as materialized (
    -- The hours after the priced open rows. The last open row is extended if it has no price.
    select due.*, (array_agg(o.id) filter (where o.grows))[1] as row_id,
        coalesce(max(case when o.grows then o.first_hour else o.end_hour end), 0) as first_hour
    from due
    left join open_row o on o.instance_id = due.id
    group by due.id, due.organization_id, due.starts_at, due.hours
), kept as materialized (
    select k.id, k.organization_id, k.starts_at, k.ends_at,
        case when k.changed then k.hours end as hours,
        case when k.changed and billing_is_price(k.monthly_price) then billing_charge(k.monthly_price, k.starts_at, k.hours) end as owed
    from (
        select o.id, t.organization_id, o.monthly_price, h.end_hour - h.first_hour as hours, p.*,
            (o.billing_period_start, o.billing_period_end) <> (p.starts_at, p.ends_at) as changed
        from open_row o
        join tail t on t.id = o.instance_id
        cross join lateral (select case when o.grows then t.first_hour else o.first_hour end as first_hour,
            case when o.grows then t.hours else o.end_hour end as end_hour) h
        cross join lateral (select t.starts_at + h.first_hour * interval '1 hour' as starts_at,
            t.starts_at + h.end_hour * interval '1 hour' as ends_at) p
        where h.end_hour > h.first_hour
    ) k
), reason as (
    select %(origin)s::jsonb || jsonb_build_object('reason', %(reason)s::text, 'error', %(error)s::text) as metadata
), deleted as (
    delete from vps_billing_cycles where id in (select id from open_row) and id not in (select id from kept)
    returning id
), updated as (
    update vps_billing_cycles c
    set organization_id = k.organization_id, billing_period_start = k.starts_at, billing_period_end = k.ends_at,
        total_amount = coalesce(least(k.owed, 99999999.99), c.total_amount),
        metadata = c.metadata || r.metadata || jsonb_strip_nulls(jsonb_build_object('hours', k.hours, 'owed', k.owed))
    from kept k, reason r
    where c.id = k.id
    returning c.id
), inserted as (
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, metadata)
    select billing_time_ordered_uuid(clock_timestamp()), t.id, t.organization_id, t.starts_at + t.first_hour * interval '1 hour',
        t.starts_at + t.hours * interval '1 hour', 0, 0, 'failed',
        r.metadata || jsonb_build_object('hours', t.hours - t.first_hour, 'since', to_jsonb(%(as_of)s::timestamptz))
            || case when billing_in_backlog(t.id, t.organization_id, t.starts_at,
                (select billing_backlog_edge(%(as_of)s, %(max_backlog_hours)s))) then '{"backlog": true}' else '{}' end::jsonb
    from tail t, reason r
    where t.row_id is null and t.hours > t.first_hour
    returning id
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, failures, failures_by_reason)
    select %(run_id)s, %(term)s, clock_timestamp(), count(*), jsonb_build_object(%(reason)s::text, count(*)) from due
)
select count(*) as failures,
    (select count(*) from updated) = (select count(*) from kept)
        and (select count(*) from deleted) = (select count(*) from open_row) - (select count(*) from kept)
        and (select count(*) from inserted) = (select count(*) from tail where row_id is null and hours > first_hour) as consistent
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
-- Instances that were due at the cycle's start, are still due, and have no open row with a reason. Leaves out the
-- organizations whose failures are counted already but could not be recorded. If the ledger is ahead of last_billed_at, it decides
-- whether a whole hour is unbilled.
select count(*) as missed
from vps_instances i
where billing_due(i.last_billed_at, i.created_at, %(as_of)s)
    and i.organization_id <> all (%(unrecorded)s::uuid[])
    and not exists (
        select from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata))
    and exists (
        select from billing_position(i.id, i.last_billed_at, i.created_at) p
        where billing_due(p.starts_at, null, %(as_of)s))

-- name: record_missed
-- The plan did not find these instances. They are added to it, so that the counts of the run add up.
with planned as (
    update billing_runs set planned = planned + %(missed)s where id = %(run_id)s and term = %(term)s
)
insert into billing_batches (run_id, term, written_at, failures, failures_by_reason)
values (%(run_id)s, %(term)s, clock_timestamp(), %(missed)s, jsonb_build_object('missed', %(missed)s::bigint))
