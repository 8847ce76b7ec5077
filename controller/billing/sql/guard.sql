-- The guard: a cheap audit of the newest charges. It reads every payment that the controller has written since the guard's
-- last check, by its time-ordered id, with its period, its instance and its wallet. It can't compare a wallet with its whole
-- history or find changes of old rows; the audit does. It locks nothing that billing needs.

-- name: guard_begin
-- Returns the range of payment ids to check. The ids contain the time of the payment by the database's clock.
select checked_until, clock_timestamp() as now,
    (lpad(to_hex(floor(extract(epoch from checked_until) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid as after_id,
    (lpad(to_hex(floor(extract(epoch from clock_timestamp()) * 1000)::bigint + 1), 12, '0') || repeat('0', 20))::uuid as end_id
from billing_guard

-- name: guard_charges
with payment as materialized (
    select id, organization_id, amount, status, metadata
    from payment_transactions
    where id > %(after_id)s and id < %(end_id)s and billing_is_ours(metadata)
    order by id
    limit %(limit)s
), unsound as materialized (
    select organization_id
    from wallets
    where organization_id in (select organization_id from payment)
    group by organization_id
    having count(*) > 1 or bool_or(balance is null or balance = 'NaN' or balance < 0)
), judged as materialized (
    select p.organization_id, p.id as payment_id,
        case
            when c.id is null and i.id is null then null  -- deleting an instance deletes its periods
            when c.id is null or count(c.id) over (partition by p.id) > 1 then 'transactions'
            when c.status = 'billed' and (c.organization_id <> p.organization_id or c.total_amount <> -p.amount
                or p.status <> 'completed') then 'transactions'
            when c.billing_period_end <= c.billing_period_start or c.billing_period_end > clock_timestamp()
                or c.billing_period_end
                    <> c.billing_period_start + (c.metadata ->> 'hours')::bigint * interval '1 hour' then 'whole_hours'
            when c.total_amount <> billing_charge((c.metadata ->> 'monthly_price')::numeric, c.billing_period_start,
                (c.metadata ->> 'hours')::bigint) then 'price_clock'
            when before.period_end > c.billing_period_start then 'periods'
            -- `and` would also call the function for a null
            when case when before.period_end < c.billing_period_start
                then not billing_gap_is_lawful(c.vps_instance_id, before.period_end, c.billing_period_start, c.metadata) end then 'periods'
            when i.last_billed_at is null or i.last_billed_at < c.billing_period_end then 'last_billed'
            when r.term is distinct from (c.metadata ->> 'term')::bigint then 'terms'
            when p.organization_id in (select organization_id from unsound) then 'wallet_state'
        end as invariant
    from payment p
    left join vps_billing_cycles c on c.payment_transaction_id = p.id
    left join vps_instances i on i.id = coalesce(c.vps_instance_id, (p.metadata ->> 'vps_instance_id')::uuid)
    left join billing_runs r on r.id = (c.metadata ->> 'run')::bigint
    left join lateral (
        select b.billing_period_end as period_end
        from vps_billing_cycles b
        where b.vps_instance_id = c.vps_instance_id and b.status in ('billed', 'refunded')
            and billing_is_ours(b.metadata)
            and b.billing_period_start <= c.billing_period_start and b.id <> c.id
        order by b.billing_period_start desc
        limit 1
    ) before on true
)
select (select count(*) from payment) as payments,
    (select -coalesce(sum(amount) filter (where abs(amount) < 'infinity'), 0) from payment) as amount,
    (select id from payment order by id desc limit 1) as last_id,
    coalesce((
        select jsonb_agg(broken) from (
            select distinct on (organization_id) organization_id, invariant, payment_id
            from judged
            where invariant is not null
            order by organization_id, payment_id
        ) broken), '[]') as violations

-- name: guard_unreadable
-- Returns the next payment without its metadata, because guard_charges can't read it.
select id, organization_id, case when abs(amount) < 'infinity' then amount else 0 end as amount
from payment_transactions
where id > %(after_id)s and id < %(end_id)s and billing_is_ours(metadata)
order by id
limit 1

-- name: guard_charged
-- The amount that batches have recorded since the guard's last check, and the runs of these batches.
select coalesce(sum(b.amount), 0) as amount, coalesce(array_agg(distinct b.run_id::text), '{}') as runs
from billing_batches b
where b.written_at >= %(checked_until)s
    and b.run_id in (select id from billing_runs where coalesce(finished_at, 'infinity') >= %(checked_until)s)

-- name: guard_unpaid
-- Billed periods of some runs whose payment is missing, by organization. It runs only if payments of these runs are missing. It
-- reads the newest periods of each instance, because those runs are the newest too.
select c.organization_id, count(*) as periods, min(c.id::text) as example
from vps_instances i
cross join lateral (
    select *
    from vps_billing_cycles p
    where p.vps_instance_id = i.id and p.status in ('billed', 'refunded') and billing_is_ours(p.metadata)
    order by p.billing_period_start desc
    limit 3
) c
where c.status = 'billed' and c.total_amount > 0 and c.metadata ->> 'run' = any (%(runs)s::text[])
    and not exists (
        select from payment_transactions p where p.id = c.payment_transaction_id and billing_is_ours(p.metadata))
group by c.organization_id

-- name: guard_end
update billing_guard set checked_until = greatest(checked_until, %(checked_until)s)

-- name: suspend_organization
insert into billing_suspensions (organization_id, reason, detail)
values (%(organization_id)s, %(reason)s, %(detail)s)
on conflict do nothing
returning organization_id

-- name: suspended_organizations
select organization_id from billing_suspensions where kind = 'guard' order by suspended_at, organization_id

-- name: unsuspend_organization
delete from billing_suspensions where organization_id = %(organization_id)s and kind = 'guard'
