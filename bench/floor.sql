-- The floor: charges the same instances and writes the same rows as a cycle, in one session and one transaction, as fast
-- as hand-written SQL can. It has no fence, lock order, retries, failure isolation, debts or history, and it assumes that
-- every wallet can pay.
--
-- Measured choices (bench/results/experiments.md):
-- * A temporary table beats one statement with CTEs: nothing is computed twice, and each write scans it once.
-- * Rows are in the order of instance ids. That order matches two indexes and one foreign key, so each page is visited once.
-- * Updates before inserts produce less write-ahead log.
-- * A period and its payment share one id, as in a cycle.
--
-- :'as_of' (psql's syntax) is the time whose due hours are charged.

set local jit = off;
set local work_mem = '256MB';

create temporary table charge on commit drop as
select i.id, i.organization_id, i.label, w.id as wallet_id, w.currency, p.monthly_price, p.source, d.period_start, d.hours,
    d.period_start + d.hours * interval '1 hour' as period_end,
    billing_charge(p.monthly_price, d.period_start, d.hours) as amount,
    w.balance - sum(billing_charge(p.monthly_price, d.period_start, d.hours)) over chain as balance_after,
    row_number() over chain as place,
    billing_time_ordered_uuid(clock_timestamp() + row_number() over chain * interval '1 microsecond') as charge_id
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
where billing_due(i.last_billed_at, i.created_at, :'as_of'::timestamptz)
window chain as (partition by w.id order by i.created_at, i.id)
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
    (id, organization_id, amount, currency, payment_method, payment_provider, status, description, metadata, created_at)
select charge_id, organization_id, -amount, currency, 'wallet_debit', 'internal', 'completed',
    billing_charge_description(label, id, hours),
    '{"controller": "vps-billing", "term": 1, "run": 1}'::jsonb || jsonb_build_object('vps_instance_id', id, 'hours', hours,
        'balance_before', balance_after + amount, 'balance_after', balance_after),
    now() + place * interval '1 microsecond'
from charge
where amount > 0;

insert into vps_billing_cycles
    (id, vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount,
     status, payment_transaction_id, metadata)
select charge_id, id, organization_id, period_start, period_end,
    round(monthly_price / 730, 4), amount, 'billed', case when amount > 0 then charge_id end,
    '{"controller": "vps-billing", "term": 1, "run": 1}'::jsonb
        || billing_period_facts(label, hours, monthly_price, source)
from charge
