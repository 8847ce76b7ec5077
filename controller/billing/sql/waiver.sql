-- Waivers: an operator writes off unpaid whole hours. The leader does it between two cycles, in fenced transactions.

-- name: waivers
-- The waivers that the leader has to carry out now. They wait during a takeover, and while another biller halts billing, because
-- that program may be about to charge the same hours. A pause doesn't delay them, because an operator gave both commands.
-- as_of is never later than the command, because hours that have not passed can't be waived.
select c.id, c.organization_id, c.instance_id, c.reason, c.given_by, least(c.until, c.given_at, clock_timestamp()) as as_of
from billing_commands c
cross join billing_leadership l
where c.finished_at is null and c.command = 'waive' and (l.bill_after is null or l.bill_after <= clock_timestamp())
    and not exists (select from billing_notices() n where n.halts and n.kind <> 'paused')
order by c.id

-- name: waive
-- Waives the unpaid hours before as_of of some instances. Each segment of one price becomes a billed period of 0.00 that records
-- the amount. Open rows for these hours are deleted, and one that reaches beyond as_of keeps the rest. Hours without a usable
-- price stay open. Like a charge, it compares and swaps last_billed_at and counts what it wrote.
with due as materialized (
    select id, organization_id, label, last_billed_at
    from vps_instances
    where organization_id = %(organization_id)s and (%(instance_id)s::uuid is null or id = %(instance_id)s)
        and (%(after_id)s::uuid is null or id > %(after_id)s) and billing_due(last_billed_at, created_at, %(as_of)s)
    order by id
    limit %(batch_size)s
), segment as materialized (
    select d.organization_id, d.label, d.last_billed_at, s.*, s.starts_at + s.hours * interval '1 hour' as ends_at
    from (
        select *, bool_and(start_known and hours > 0 and billing_is_price(monthly_price)) over (partition by instance_id) as usable
        from billing_segments(array(select id from due), %(as_of)s, %(default_monthly_price)s)
    ) s
    join due d on d.id = s.instance_id
    where s.usable
), instance as materialized (
    select instance_id, min(last_billed_at) as last_billed_at, max(ends_at) as ends_at, sum(hours)::bigint as hours
    from segment group by instance_id
), open_row as materialized (
    select c.id, i.ends_at, c.billing_period_end > i.ends_at as reaches_beyond, billing_whole_hours(i.ends_at, c.billing_period_end) as hours,
        case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number' then (c.metadata ->> 'monthly_price')::numeric end as monthly_price
    from instance i
    join vps_billing_cycles c on c.vps_instance_id = i.instance_id and c.status = 'failed' and billing_is_ours(c.metadata)
        and c.billing_period_start < i.ends_at
), deleted as (
    delete from vps_billing_cycles where id in (select id from open_row where not reaches_beyond) returning id
), kept as (
    update vps_billing_cycles c
    set billing_period_start = k.ends_at, total_amount = coalesce(least(k.owed, 99999999.99), c.total_amount),
        metadata = c.metadata || jsonb_strip_nulls(jsonb_build_object('hours', k.hours, 'hours_charged', k.hours, 'owed', k.owed))
    from (
        select o.*, case when billing_is_price(o.monthly_price) then billing_charge(o.monthly_price, o.ends_at, o.hours) end as owed
        from open_row o where o.reaches_beyond
    ) k
    where c.id = k.id
    returning c.id
), period as (
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, metadata)
    select billing_time_ordered_uuid(clock_timestamp()), instance_id, organization_id, starts_at, ends_at,
        round(monthly_price / 730, 4), 0.00, 'billed',
        %(origin)s::jsonb || jsonb_strip_nulls(billing_period_facts(label, hours, monthly_price, price_source)
            || jsonb_build_object('owed_since', since,
                'moved_forward', case when ledger_end < starts_at and starts_at = last_billed_at then true end,
                'waived', jsonb_build_object('amount', billing_charge(monthly_price, starts_at, hours),
                    'command', %(command_id)s::bigint, 'reason', %(reason)s::text, 'by', %(given_by)s::text)))
    from segment
    returning total_amount, status
), advanced as (
    update vps_instances i
    set last_billed_at = n.ends_at
    from instance n
    where i.id = n.instance_id and i.last_billed_at is not distinct from n.last_billed_at
    returning i.last_billed_at = n.ends_at as written
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours)
    select %(run_id)s, %(term)s, clock_timestamp(), count(*), coalesce(sum(hours), 0) from instance
    returning id
)
select (select count(*) from due) as due, (select max(id::text)::uuid from due) as last_id,
    (select count(*) from instance) as instances, (select coalesce(sum(hours), 0)::bigint from instance) as hours,
    (select coalesce(sum(billing_charge(monthly_price, starts_at, hours)), 0.00) from segment) as waived,
    (select count(*) filter (where total_amount = 0 and status = 'billed') from period) = (select count(*) from segment)
        and (select count(*) filter (where written) from advanced) = (select count(*) from instance)
        and (select count(*) from deleted) + (select count(*) from kept) = (select count(*) from open_row)
        and (select count(*) from batch_recorded) = 1 as consistent

-- name: begin_waiver
-- Each transaction of a waiver also writes the end of its run. If the leader is lost before the last one, the run is complete for what
-- it has waived, and the successor waives the rest in another run.
with begun as (
    insert into billing_runs (term, holder, started_at, kind)
    values (%(term)s, %(holder)s, clock_timestamp(), 'waiver')
    returning id, started_at
), noted as (
    update billing_commands set run_id = (select id from begun) where id = %(command_id)s
)
select id, started_at from begun

-- name: finish_command
-- Also acknowledges the command, because the leader may carry it out before answer_commands has done so.
update billing_commands c
set finished_at = clock_timestamp(), refusal = %(refusal)s, acknowledged_at = coalesce(c.acknowledged_at, clock_timestamp()),
    acknowledged_by = l.holder
from billing_leadership l
where c.id = %(id)s and c.finished_at is null

-- name: waived
-- What a waiver has waived, in all of its runs.
select count(distinct c.vps_instance_id) as instances, coalesce(sum((c.metadata ->> 'hours')::bigint), 0)::bigint as hours,
    coalesce(sum(billing_waived(c.metadata)), 0.00) as amount
from billing_commands w
join vps_billing_cycles c on c.organization_id = w.organization_id and c.status = 'billed' and billing_is_ours(c.metadata)
where w.id = %(id)s and c.metadata -> 'waived' ->> 'command' = w.id::text
