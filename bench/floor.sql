-- The floor: the same rows for the same instances by one session in one transaction, as fast as hand-written SQL gets.
-- It has no fence, no locks in order, no retry, no isolation of failures, no debts and no history: it may assume that
-- every wallet can pay. What makes it fast, measured (docs/performance.md): a materialized temporary table beats one
-- statement with CTEs, since every writing step scans it once and nothing is computed twice; in the order of the
-- instances' ids new entries of two indexes and the checks of a foreign key go through the tables once; and updates before
-- inserts save write-ahead log. As in a cycle, a period and its payment share one id.
-- :'as_of' is the moment whose due hours are charged, as psql writes a variable.

set local jit = off;
set local work_mem = '256MB';

create temporary table charge on commit drop as
select i.id, i.organization_id, i.label, w.id as wallet_id, w.currency, p.monthly_price, p.source, d.period_start, d.hours,
    d.period_start + d.hours * interval '1 hour' as period_end,
    billing_charge(p.monthly_price, d.period_start, d.hours) as amount,
    billing_time_ordered_uuid(clock_timestamp()) as charge_id
from vps_instances i
cross join lateral (
    select coalesce(i.last_billed_at, i.created_at) as period_start,
        billing_whole_hours(coalesce(i.last_billed_at, i.created_at), :'as_of'::timestamptz) as hours
) d
join (
    select distinct on (key) key, base_price + coalesce(markup_price, 0) as monthly_price, source
    from (select id::text as key, 'plan' as source, 1 as preference, * from vps_plans
          union all select provider_plan_id, 'provider_plan', 2, * from vps_plans) k
    order by key, preference, active desc, created_at
) p on p.key = i.plan_id
join wallets w on w.organization_id = i.organization_id
where billing_is_due(i.last_billed_at, i.created_at, :'as_of'::timestamptz)
order by i.id;

update wallets w
set balance = w.balance - c.amount, updated_at = now()
from (select wallet_id, sum(amount) as amount from charge group by wallet_id) c
where w.id = c.wallet_id and c.amount > 0;

update vps_instances i
set last_billed_at = c.period_end
from charge c
where i.id = c.id;

insert into payment_transactions
    (id, organization_id, amount, currency, payment_method, payment_provider, status, description, metadata)
select charge_id, organization_id, -amount, currency, 'wallet_debit', 'internal', 'completed',
    'VPS ' || coalesce(label, id::text) || ', ' || hours || ' h',
    '{"controller": "containerstacks-billing", "term": 1, "run": 1}'::jsonb
        || jsonb_build_object('vps_instance_id', id, 'hours', hours)
from charge
where amount > 0;

insert into vps_billing_cycles
    (id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount,
     status, payment_transaction_id, metadata)
select charge_id, id, organization_id, period_start, period_end,
    round(monthly_price / 730, 4), amount, 'billed', case when amount > 0 then charge_id end,
    '{"controller": "containerstacks-billing", "term": 1, "run": 1}'::jsonb
        || jsonb_build_object('hours', hours, 'monthly_price', monthly_price, 'price_source', source)
from charge
