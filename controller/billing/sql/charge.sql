-- One batch: a transaction of fence, charge_covered, charge_wallets; and where some organization is not plainly covered,
-- lock_organizations, adopt_wallets, charge_ordered for those. No statement waits for a wallet before its last one, so that
-- an application's top-up waits for the end of a transaction and not for the whole of it.

-- name: charge_covered
-- The fast path: organizations whose one sound wallet covers everything, with no open debt and a priced plan for each
-- instance. Charges their instances, and hands back the wallets with what is to be taken from each, and the organizations
-- that are left for the ordered path. Nothing is locked beforehand: charge_wallets finds out whether the wallets can still pay.
with due as materialized (
    select id, organization_id, plan_id, label, created_at, last_billed_at,
        coalesce(last_billed_at, created_at) as period_start
    from vps_instances
    where organization_id between %(first_organization)s and %(last_organization)s
        and billing_is_due(last_billed_at, created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(created_at, 'infinity'), id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    order by organization_id, coalesce(created_at, 'infinity'), id
    limit %(batch_size)s
), indebted as materialized (
    select vps_instance_id
    from vps_billing_cycles
    where vps_instance_id = any (array(select id from due))
        and status = 'failed' and billing_is_ours(metadata)
), costed as materialized (
    -- null where it is not plain what an instance costs, or whether it is all that it owes. `is not true` keeps `in` from
    -- becoming a join: the planner can't know how many are in it
    select due.id, due.organization_id, due.label, due.last_billed_at, due.period_start, counted.hours, p.monthly_price,
        p.source as price_source,
        case when p.monthly_price >= 0 and p.monthly_price < 'NaN'
                and (due.id in (select vps_instance_id from indebted)) is not true
            then billing_charge(p.monthly_price, due.period_start, counted.hours) end as amount
    from due
    cross join lateral (
        select case when billing_is_moment(due.period_start) then billing_whole_hours(due.period_start, %(as_of)s) end as hours
    ) counted
    left join billing_plan_prices() p on p.key = due.plan_id
), owed as materialized (
    select organization_id, sum(amount) as amount
    from costed
    group by organization_id
    having count(amount) = count(*)
), covered as materialized (
    select o.organization_id, o.amount, w.id as wallet_id
    from owed o
    join wallets w on w.organization_id = o.organization_id
    where w.balance >= o.amount and w.balance < 'NaN' and upper(w.currency) = %(currency)s
        and exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
        and not exists (select from wallets other where other.organization_id = w.organization_id and other.id <> w.id)
        and not exists (select from billing_suspensions h where h.organization_id = o.organization_id)
), charge as materialized (
    select *, period_start + hours * interval '1 hour' as period_end,
        billing_time_ordered_uuid(clock_timestamp()) as charge_id
    from costed
    where (organization_id in (select organization_id from covered)) is true
    order by id
), paid as (
    insert into payment_transactions
        (id, organization_id, amount, currency, payment_method, payment_provider, status, description, metadata)
    select charge_id, organization_id, -amount, %(currency)s, 'wallet_debit', 'internal', 'completed',
        'VPS ' || coalesce(label, id::text) || ', ' || hours || ' h',
        %(origin)s::jsonb || jsonb_build_object('vps_instance_id', id, 'hours', hours)
    from charge
    where amount > 0
), period_inserted as (
    -- a period and its payment are one charge and share its id
    insert into vps_billing_cycles
        (id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount,
         status, payment_transaction_id, metadata)
    select charge_id, id, organization_id, period_start, period_end, round(monthly_price / 730, 4), amount,
        'billed', case when amount > 0 then charge_id end,
        %(origin)s::jsonb || jsonb_build_object('hours', hours, 'monthly_price', monthly_price, 'price_source', price_source)
    from charge
), instance_advanced as (
    -- compare and swap
    update vps_instances i
    set last_billed_at = c.period_end
    from charge c
    where i.id = c.id and i.last_billed_at is not distinct from c.last_billed_at
    returning i.id
), total as (
    select count(*) as instances, coalesce(sum(hours), 0)::bigint as hours, coalesce(sum(amount), 0) as amount from charge
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount, debts, failures)
    select %(run_id)s, %(term)s, clock_timestamp(), instances, hours, amount, 0, 0
    from total
    where instances > 0
)
select t.instances, t.hours, t.amount, 0 as debts, 0 as failures,
    (select count(*) from due) as due,
    (select count(*) from instance_advanced) = t.instances as consistent,
    array(select wallet_id from covered where amount > 0) as wallets,
    array(select amount from covered where amount > 0) as amounts,
    array(select distinct organization_id from due where (organization_id in (select organization_id from covered)) is not true)
        as left_over,
    last_due.created_at::text as last_created_at,
    last_due.id as last_id
from total t
left join lateral (
    select coalesce(created_at, 'infinity') as created_at, id
    from due
    order by organization_id desc, coalesce(created_at, 'infinity') desc, id desc
    limit 1
) last_due on true

-- name: charge_wallets
-- In the one global order. A wallet that can't pay any more is not counted: the whole batch is rolled back and tried with care.
with locked as materialized (
    select w.id, o.amount
    from unnest(%(wallets)s::uuid[], %(amounts)s::numeric[]) as o (wallet_id, amount)
    join wallets w on w.id = o.wallet_id
    order by w.organization_id, w.id
    for no key update of w
), charged as (
    update wallets w
    set balance = w.balance - l.amount, updated_at = now()
    from locked l
    where w.id = l.id and w.balance >= l.amount
    returning w.id
)
select count(*) as charged from charged

-- name: lock_organizations
-- Locks the wallets in the one global order, without waiting: an organization with a row that someone else holds is handed
-- back, to be tried again on its own. What is locked here is read again by charge_ordered, whose snapshot is younger than
-- the locks. Everything else is locked by charge_ordered as it writes; `lock_first`, after a first try has failed, locks it
-- here in the strength that will be needed, to find out whose it is.
with due as materialized (
    select distinct organization_id
    from vps_instances
    where organization_id = any (%(organizations)s::uuid[])
        and billing_is_due(last_billed_at, created_at, %(as_of)s)
), wallet as materialized (
    select id, organization_id from wallets where organization_id in (select organization_id from due)
), locked_wallet as materialized (
    select w.id
    from wallets w
    where w.id in (select id from wallet)
    order by w.organization_id, w.id
    for no key update skip locked
), organization as materialized (
    select id
    from organizations
    where %(lock_first)s and id in (select organization_id from due)
), locked_organization as materialized (
    select o.id
    from organizations o
    where o.id in (select id from organization) and (select count(*) from locked_wallet) >= 0  -- wallets first
    order by o.id
    for key share skip locked
), instance as materialized (
    select id, organization_id
    from vps_instances
    where %(lock_first)s and organization_id = any (%(organizations)s::uuid[])
        and billing_is_due(last_billed_at, created_at, %(as_of)s)
), locked_instance as materialized (
    select i.id
    from vps_instances i
    where i.id in (select id from instance) and (select count(*) from locked_organization) >= 0
    order by i.organization_id, i.created_at, i.id
    for no key update skip locked
), debt as materialized (
    select c.id, i.organization_id
    from vps_billing_cycles c
    join instance i on i.id = c.vps_instance_id
    where c.status = 'failed' and billing_is_ours(c.metadata)
), locked_debt as materialized (
    select c.id
    from vps_billing_cycles c
    where c.id in (select id from debt) and (select count(*) from locked_instance) >= 0
    order by c.id
    for no key update skip locked
)
select coalesce(array_agg(distinct organization_id), '{}') as locked_by_others,
    exists (select from wallet w where not exists (select from billing_wallet_baselines b where b.wallet_id = w.id))
        as adoptable
from (
    select organization_id from wallet where id not in (select id from locked_wallet)
    union all
    select id from organization where id not in (select id from locked_organization)
    union all
    select organization_id from instance where id not in (select id from locked_instance)
    union all
    select organization_id from debt where id not in (select id from locked_debt)
) locked

-- name: adopt_wallets
-- First sight of a wallet that is younger than migration 015: see there.
insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)
select w.id, w.organization_id, w.balance - coalesce(
    (select sum(t.amount) from payment_transactions t
     where t.organization_id = w.organization_id and t.status = 'completed'), 0), w.balance
from wallets w
where w.organization_id in (
        select organization_id from vps_instances
        where organization_id = any (%(organizations)s::uuid[])
            and billing_is_due(last_billed_at, created_at, %(as_of)s))
    and w.organization_id <> all (%(locked_by_others)s::uuid[])
    and not exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
    and w.balance is not null and w.balance <> 'NaN'
    and not exists (select from wallets o where o.organization_id = w.organization_id and o.id <> w.id)
on conflict do nothing

-- name: charge_ordered
-- The ordered path: whatever is not plainly covered. Who owes what, what the wallets pay of it in the order of the instances,
-- and every row that says so. Needs lock_organizations.
with due as materialized (
    select i.id, i.organization_id, i.plan_id, i.label, i.created_at, i.last_billed_at,
        case when billing_is_moment(coalesce(i.last_billed_at, i.created_at)) then coalesce(i.last_billed_at, i.created_at)
            else %(as_of)s::timestamptz - interval '1 hour' end as period_start,
        billing_is_moment(coalesce(i.last_billed_at, i.created_at)) as start_known
    from vps_instances i
    where i.organization_id = any (%(organizations)s::uuid[])
        and i.organization_id <> all (%(locked_by_others)s::uuid[])
        and billing_is_due(i.last_billed_at, i.created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(i.created_at, 'infinity'), i.id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    order by i.organization_id, coalesce(i.created_at, 'infinity'), i.id
    limit %(batch_size)s
), wallet as materialized (
    -- id, balance and currency mean something where there is one
    select organization_id, count(*) as wallets, (array_agg(id))[1] as id,
        min(balance) as balance, min(currency) as currency
    from wallets
    where organization_id = any (%(organizations)s::uuid[])
    group by organization_id
), open_debt as materialized (
    select vps_instance_id, id, metadata -> 'since' as since
    from vps_billing_cycles
    where status = 'failed' and billing_is_ours(metadata)
        and vps_instance_id = any (array(select id from due))
), priced as (
    select due.*, w.id as wallet_id, w.balance, w.currency, o.id as debt_id, o.since,
        billing_whole_hours(due.period_start, %(as_of)s) as hours,
        coalesce(p.monthly_price, %(default_monthly_price)s::numeric) as monthly_price,
        case when p.monthly_price is not null then p.source else 'default' end as price_source,
        case
            when h.organization_id is not null then 'audit_violation'
            when w.wallets is null then 'wallet_missing'
            when w.wallets > 1 then 'wallet_duplicate'
            when w.balance is null then 'balance_null'
            when w.balance = 'NaN' then 'balance_nan'
            when upper(w.currency) is distinct from %(currency)s then 'currency_mismatch'
            when not due.start_known then 'start_unknown'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) is null then 'price_missing'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) < 0 then 'price_negative'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) = 'NaN' then 'price_nan'
        end as failure_reason
    from due
    left join billing_plan_prices() p on p.key = due.plan_id
    left join wallet w on w.organization_id = due.organization_id
    left join billing_suspensions h on h.organization_id = due.organization_id
    left join open_debt o on o.vps_instance_id = due.id
), costed as materialized (
    select *,
        case when monthly_price >= 0 and monthly_price < 'NaN' then billing_charge(monthly_price, period_start, hours) else 0
        end as cost
    from priced
), judged as (
    -- whether the wallet covers everything that its organization owes
    select *, sum(cost) filter (where failure_reason is null) over (partition by organization_id) <= greatest(balance, 0) as covered
    from costed
), short_organization as (
    select array_agg(id order by coalesce(created_at, 'infinity'), id) as ids,
        billing_affordable_hours(
            min(balance),
            array_agg(monthly_price order by coalesce(created_at, 'infinity'), id),
            array_agg(period_start order by coalesce(created_at, 'infinity'), id),
            array_agg(hours order by coalesce(created_at, 'infinity'), id)
        ) as affordable_hours
    from judged
    where failure_reason is null and not covered
    group by organization_id
), allotted as materialized (
    select a.id, a.paid_hours
    from short_organization s
    cross join lateral unnest(s.ids, s.affordable_hours) as a (id, paid_hours)
), settled as (
    select j.*,
        case when j.failure_reason is not null then 0 when j.covered then j.hours else a.paid_hours end as paid_hours,
        case
            when j.failure_reason is not null then 0
            when j.covered or a.paid_hours = j.hours then j.cost
            else billing_charge(j.monthly_price, j.period_start, a.paid_hours)
        end as amount
    from judged j
    left join allotted a on a.id = j.id
), charge as materialized (
    select *,
        period_start + paid_hours * interval '1 hour' as paid_until,
        case when amount > 0 then billing_time_ordered_uuid(clock_timestamp()) end as payment_id
    from settled
), paid as (
    insert into payment_transactions
        (id, organization_id, amount, currency, payment_method, payment_provider, status, description, metadata)
    select payment_id, organization_id, -amount, currency, 'wallet_debit', 'internal', 'completed',
        'VPS ' || coalesce(label, id::text) || ', ' || paid_hours || ' h',
        %(origin)s::jsonb || jsonb_build_object('vps_instance_id', id, 'hours', paid_hours)
    from charge
    where payment_id is not null
), period as materialized (
    -- what is paid, and what stays owed. The open debt's row is used again: for what is still owed, else it becomes the
    -- billed row that closes it.
    select id as vps_instance_id, organization_id, period_start, paid_until as period_end, monthly_price, amount,
        'billed' as status, payment_id, case when paid_hours = hours then debt_id end as debt_id,
        %(origin)s::jsonb || jsonb_strip_nulls(jsonb_build_object('hours', paid_hours, 'monthly_price', monthly_price,
            'price_source', price_source, 'owed_since', case when paid_hours = hours then since end)) as metadata
    from charge
    where paid_hours > 0
    union all
    select id, organization_id, paid_until, period_start + hours * interval '1 hour', monthly_price, cost - amount,
        'failed', null, debt_id,
        %(origin)s::jsonb || jsonb_strip_nulls(jsonb_build_object('hours', hours - paid_hours, 'monthly_price', monthly_price,
            'price_source', price_source, 'reason', coalesce(failure_reason, 'insufficient_balance'),
            'owed', cost - amount, 'since', coalesce(since, to_jsonb(%(as_of)s::timestamptz))))
    from charge
    where paid_hours < hours
), period_row as (
    -- as the columns can hold it; what does not fit numeric(10,2) is exact in the metadata
    select *,
        case when monthly_price >= 0 and monthly_price < 'NaN' then round(monthly_price / 730, 4) else 0 end as hourly_rate,
        least(amount, 99999999.99) as total_amount
    from period
), debt_updated as (
    update vps_billing_cycles c
    set organization_id = p.organization_id, billing_period_start = p.period_start, billing_period_end = p.period_end,
        hourly_rate = p.hourly_rate, total_amount = p.total_amount, status = p.status,
        payment_transaction_id = p.payment_id, metadata = p.metadata
    from period_row p
    where c.id = p.debt_id
    returning c.id
), period_inserted as (
    insert into vps_billing_cycles
        (id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount,
         status, payment_transaction_id, metadata)
    select coalesce(payment_id, billing_time_ordered_uuid(clock_timestamp())), vps_instance_id, organization_id, period_start, period_end,
        hourly_rate, total_amount, status, payment_id, metadata
    from period_row
    where debt_id is null
    returning id
), wallet_charged as (
    update wallets w
    set balance = w.balance - o.amount, updated_at = now()
    from (select wallet_id, sum(amount) as amount from charge where amount > 0 group by wallet_id) o
    where w.id = o.wallet_id and w.balance >= o.amount
    returning w.id
), instance_advanced as (
    -- compare and swap
    update vps_instances i
    set last_billed_at = c.paid_until
    from charge c
    where i.id = c.id and c.paid_hours > 0 and i.last_billed_at is not distinct from c.last_billed_at
    returning i.id
), total as (
    select
        count(*) as due,
        count(*) filter (where paid_hours > 0) as instances,
        coalesce(sum(paid_hours), 0)::bigint as hours,
        coalesce(sum(amount), 0) as amount,
        count(*) filter (where failure_reason is null and paid_hours < hours) as debts,
        count(*) filter (where failure_reason is not null) as failures,
        count(distinct wallet_id) filter (where amount > 0) as wallets
    from charge
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount, debts, failures)
    select %(run_id)s, %(term)s, clock_timestamp(), instances, hours, amount, debts, failures from total
)
select t.due, t.instances, t.hours, t.amount, t.debts, t.failures,
    -- all of it happened, or someone changed a row that we had locked
    (select count(*) from instance_advanced) = t.instances
        and (select count(*) from wallet_charged) = t.wallets
        and (select count(*) from debt_updated) + (select count(*) from period_inserted) = (select count(*) from period)
        as consistent,
    last_due.created_at::text as last_created_at,
    last_due.id as last_id,
    coalesce((select jsonb_object_agg(failure_reason, instances) from (
        select failure_reason, count(*) as instances from charge where failure_reason is not null group by failure_reason) o), '{}') as failures_by_reason,
    coalesce((select jsonb_agg(jsonb_build_object('vps_instance_id', id, 'label', label, 'plan_id', plan_id)) from (
        select id, label, plan_id from charge
        where failure_reason is null and price_source = 'default' order by id limit 20) u), '[]') as priced_by_default
from total t
left join lateral (
    select coalesce(created_at, 'infinity') as created_at, id
    from due
    order by organization_id desc, coalesce(created_at, 'infinity') desc, id desc
    limit 1
) last_due on true

-- name: due_organizations
-- A failing batch is halved until the organization at fault stands alone.
select distinct organization_id
from vps_instances
where organization_id between %(first_organization)s and %(last_organization)s
    and billing_is_due(last_billed_at, created_at, %(as_of)s)
order by organization_id

-- name: record_failed_organization
-- An organization that can't be charged for a reason of its own: every instance that is due gets, or keeps, its one open
-- row with the reason. Computes nothing that could fail again.
with due as materialized (
    select i.id, i.organization_id, o.id as debt_id, o.metadata -> 'since' as since,
        case when billing_is_moment(coalesce(i.last_billed_at, i.created_at)) then coalesce(i.last_billed_at, i.created_at)
            else %(as_of)s::timestamptz - interval '1 hour' end as period_start
    from vps_instances i
    left join vps_billing_cycles o on o.vps_instance_id = i.id and o.status = 'failed'
        and billing_is_ours(o.metadata)
    where i.organization_id = %(organization_id)s
        and billing_is_due(i.last_billed_at, i.created_at, %(as_of)s)
), period as materialized (
    select *, period_start + hours * interval '1 hour' as period_end,
        %(origin)s::jsonb || jsonb_strip_nulls(jsonb_build_object('hours', hours, 'reason', %(reason)s::text,
            'error', %(error)s::text, 'since', coalesce(since, to_jsonb(%(as_of)s::timestamptz)))) as metadata
    from (select *, billing_whole_hours(period_start, %(as_of)s) as hours from due) d
), updated as (
    update vps_billing_cycles c
    set organization_id = p.organization_id, billing_period_start = p.period_start,
        billing_period_end = p.period_end, hourly_rate = 0, total_amount = 0, metadata = p.metadata
    from period p
    where c.id = p.debt_id
), inserted as (
    insert into vps_billing_cycles
        (id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount,
         status, metadata)
    select billing_time_ordered_uuid(clock_timestamp()), id, organization_id, period_start, period_end, 0, 0,
        'failed', metadata
    from period
    where debt_id is null
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount, debts, failures)
    select %(run_id)s, %(term)s, clock_timestamp(), 0, 0, 0, 0, count(*) from period
)
select count(*) as failures from period

-- name: count_failed_organization
-- Where somebody holds the very rows that an open row would refer to.
with failed as (
    select count(*) as failures
    from vps_instances
    where organization_id = %(organization_id)s and billing_is_due(last_billed_at, created_at, %(as_of)s)
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount, debts, failures)
    select %(run_id)s, %(term)s, clock_timestamp(), 0, 0, 0, 0, failures from failed
)
select failures from failed

