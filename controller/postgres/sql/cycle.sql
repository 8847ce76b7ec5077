-- One billing cycle: begin_run, plan_cycle, then for each batch one transaction of
-- fence, lock_batch, adopt_wallets, charge_batch; at the end finish_run.

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
-- organization larger than a batch stands alone and is split as it is charged. A few bytes a batch, whatever the size.
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
order by 1

-- name: lock_batch
-- Locks the wallets in the one global order, without waiting: an organization with a row that someone else holds is handed
-- back, to be tried again on its own. What is locked here is read again by charge_batch, whose snapshot is younger than
-- the locks. Everything else is locked by charge_batch as it writes; `cautious`, after a first try has failed, locks it
-- here in the strength that will be needed, to find out whose it is.
with due as materialized (
    select distinct organization_id
    from vps_instances
    where organization_id between %(first_organization)s and %(last_organization)s
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
    where %(cautious)s and id in (select organization_id from due)
), locked_organization as materialized (
    select o.id
    from organizations o
    where o.id in (select id from organization) and (select count(*) from locked_wallet) >= 0  -- wallets first
    order by o.id
    for key share skip locked
), instance as materialized (
    select id, organization_id
    from vps_instances
    where %(cautious)s and organization_id between %(first_organization)s and %(last_organization)s
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
    where c.status = 'failed' and c.metadata ->> 'controller' = 'containerstacks-billing'
), locked_debt as materialized (
    select c.id
    from vps_billing_cycles c
    where c.id in (select id from debt) and (select count(*) from locked_instance) >= 0
    order by c.id
    for no key update skip locked
)
select coalesce(array_agg(distinct organization_id), '{}') as held_by_others,
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
) held

-- name: adopt_wallets
-- First sight of a wallet that is younger than migration 015: see there.
insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)
select w.id, w.organization_id, w.balance - coalesce(
    (select sum(t.amount) from payment_transactions t
     where t.organization_id = w.organization_id and t.status = 'completed'), 0), w.balance
from wallets w
where w.organization_id in (
        select organization_id from vps_instances
        where organization_id between %(first_organization)s and %(last_organization)s
            and billing_is_due(last_billed_at, created_at, %(as_of)s))
    and w.organization_id <> all (%(held_by_others)s::uuid[])
    and not exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
    and w.balance is not null and w.balance <> 'NaN'
    and not exists (select from wallets o where o.organization_id = w.organization_id and o.id <> w.id)
on conflict do nothing

-- name: charge_batch
-- The whole of a batch's money in one statement: who owes what, what the wallets can pay, and every row that says so.
with due as materialized (
    select i.id, i.organization_id, i.plan_id, i.label, i.created_at, i.last_billed_at,
        case when billing_is_moment(coalesce(i.last_billed_at, i.created_at)) then coalesce(i.last_billed_at, i.created_at)
            else %(as_of)s::timestamptz - interval '1 hour' end as period_start,
        billing_is_moment(coalesce(i.last_billed_at, i.created_at)) as start_known
    from vps_instances i
    where i.organization_id between %(first_organization)s and %(last_organization)s
        and i.organization_id <> all (%(held_by_others)s::uuid[])
        and billing_is_due(i.last_billed_at, i.created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(i.created_at, 'infinity'), i.id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    order by i.organization_id, coalesce(i.created_at, 'infinity'), i.id
    limit %(batch_size)s
), plan_price as materialized (
    -- by the plan's id, else by the provider's: the active one, then the oldest
    select distinct on (key) key, base_price + coalesce(markup_price, 0) as monthly_price, source
    from (
        select id::text as key, 'plan' as source, 1 as preference, base_price, markup_price, active, created_at, id
        from vps_plans
        union all
        select provider_plan_id, 'provider_plan', 2, base_price, markup_price, active, created_at, id
        from vps_plans
    ) candidate
    order by key, preference, active desc nulls last, created_at, id
), wallet as materialized (
    -- id, balance and currency mean something where there is one
    select organization_id, count(*) as wallets, (array_agg(id))[1] as id,
        min(balance) as balance, min(currency) as currency
    from wallets
    where organization_id in (select organization_id from due)
    group by organization_id
), open_debt as materialized (
    select vps_instance_id, id, metadata -> 'since' as since
    from vps_billing_cycles
    where status = 'failed' and metadata ->> 'controller' = 'containerstacks-billing'
        and vps_instance_id in (select id from due)
), priced as (
    select due.*, w.id as wallet_id, w.balance, w.currency, o.id as debt_id, o.since,
        billing_whole_hours(due.period_start, %(as_of)s) as hours,
        coalesce(p.monthly_price, %(default_monthly_price)s::numeric) as monthly_price,
        case when p.monthly_price is not null then p.source else 'default' end as price_source,
        case
            when w.wallets is null then 'wallet_missing'
            when w.wallets > 1 then 'wallet_duplicate'
            when w.balance is null then 'balance_null'
            when w.balance = 'NaN' then 'balance_nan'
            when upper(w.currency) is distinct from %(currency)s then 'currency_mismatch'
            when not due.start_known then 'start_unknown'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) is null then 'price_missing'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) < 0 then 'price_negative'
            when coalesce(p.monthly_price, %(default_monthly_price)s::numeric) = 'NaN' then 'price_nan'
        end as obstacle
    from due
    left join plan_price p on p.key = due.plan_id
    left join wallet w on w.organization_id = due.organization_id
    left join open_debt o on o.vps_instance_id = due.id
), costed as materialized (
    select *,
        case when monthly_price >= 0 and monthly_price < 'NaN' then billing_charge(monthly_price, period_start, hours) else 0
        end as cost
    from priced
), judged as (
    -- the fast path: the wallet covers everything that its organization owes
    select *, sum(cost) filter (where obstacle is null) over (partition by organization_id) <= greatest(balance, 0) as covered
    from costed
), short_organization as (
    -- the ordered path
    select array_agg(id order by coalesce(created_at, 'infinity'), id) as ids,
        billing_affordable_hours(
            min(balance),
            array_agg(monthly_price order by coalesce(created_at, 'infinity'), id),
            array_agg(period_start order by coalesce(created_at, 'infinity'), id),
            array_agg(hours order by coalesce(created_at, 'infinity'), id)
        ) as affordable_hours
    from judged
    where obstacle is null and not covered
    group by organization_id
), allotted as materialized (
    select a.id, a.paid_hours
    from short_organization s
    cross join lateral unnest(s.ids, s.affordable_hours) as a (id, paid_hours)
), settled as (
    select j.*,
        case when j.obstacle is not null then 0 when j.covered then j.hours else a.paid_hours end as paid_hours,
        case
            when j.obstacle is not null then 0
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
        jsonb_build_object('controller', 'containerstacks-billing', 'vps_instance_id', id, 'hours', paid_hours,
            'term', %(term)s::bigint, 'run', %(run_id)s::bigint)
    from charge
    where payment_id is not null
), period as materialized (
    -- what is paid, and what stays owed. The open debt's row is used again: for what is still owed, else it becomes the
    -- billed row that closes it.
    select id as vps_instance_id, organization_id, period_start, paid_until as period_end, monthly_price, amount,
        'billed' as status, payment_id, case when paid_hours = hours then debt_id end as debt_id,
        jsonb_strip_nulls(jsonb_build_object('controller', 'containerstacks-billing', 'hours', paid_hours,
            'monthly_price', monthly_price, 'price_source', price_source, 'term', %(term)s::bigint,
            'run', %(run_id)s::bigint, 'owed_since', case when paid_hours = hours then since end)) as metadata
    from charge
    where paid_hours > 0
    union all
    select id, organization_id, paid_until, period_start + hours * interval '1 hour', monthly_price, cost - amount,
        'failed', null, debt_id,
        jsonb_strip_nulls(jsonb_build_object('controller', 'containerstacks-billing', 'hours', hours - paid_hours,
            'monthly_price', monthly_price, 'price_source', price_source, 'term', %(term)s::bigint,
            'run', %(run_id)s::bigint, 'reason', coalesce(obstacle, 'insufficient_balance'),
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
    select billing_time_ordered_uuid(clock_timestamp()), vps_instance_id, organization_id, period_start, period_end,
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
        count(*) filter (where obstacle is null and paid_hours < hours) as debts,
        count(*) filter (where obstacle is not null) as failures,
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
    coalesce((select jsonb_object_agg(obstacle, instances) from (
        select obstacle, count(*) as instances from charge where obstacle is not null group by obstacle) o), '{}') as obstacles,
    coalesce((select jsonb_agg(jsonb_build_object('vps_instance_id', id, 'label', label, 'plan_id', plan_id)) from (
        select id, label, plan_id from charge
        where obstacle is null and price_source = 'default' order by id limit 20) u), '[]') as priced_by_default
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
        and o.metadata ->> 'controller' = 'containerstacks-billing'
    where i.organization_id = %(organization_id)s
        and billing_is_due(i.last_billed_at, i.created_at, %(as_of)s)
), period as materialized (
    select *, period_start + hours * interval '1 hour' as period_end,
        jsonb_strip_nulls(jsonb_build_object('controller', 'containerstacks-billing', 'hours', hours,
            'term', %(term)s::bigint, 'run', %(run_id)s::bigint, 'reason', %(reason)s::text, 'error', %(error)s::text,
            'since', coalesce(since, to_jsonb(%(as_of)s::timestamptz)))) as metadata
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
