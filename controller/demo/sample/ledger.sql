-- The demo's independent check of every charge, in temporary objects of its session.

-- The time until which each instance was billed when the demo began. A new instance starts at its creation.
create temporary table before as select id, coalesce(last_billed_at, created_at) as since from vps_instances;
create temporary view instance as
select i.*, coalesce(b.since, i.created_at) as since, p.name as plan
from vps_instances i left join before b using (id) left join vps_plans p on p.id::text = i.plan_id;
create temporary view period as
select c.*, label, plan, total_amount as amount, note.*, monthly_price * hours / 730 as by_hand
from vps_billing_cycles c join instance i on i.id = c.vps_instance_id, jsonb_to_record(c.metadata)
    as note (hours bigint, run bigint, price_source text, reason text, owed numeric, monthly_price numeric);
create temporary view cycle as
select *, (select coalesce(sum(instances), 0)::bigint from billing_batches where run_id = r.id) as charged
from billing_runs r;
-- Instances whose charged hours are not exactly the hours between that time and their current last_billed_at.
create temporary view wrongly_charged as
select id from instance i left join (
    select vps_instance_id as id, sum(hours) as hours from period where status = 'billed' group by 1
) billed using (id) where 3600 * coalesce(hours, 0) <> extract(epoch from coalesce(last_billed_at, created_at) - since);
create temporary view totals as
select (select sum(balance) from wallets) as wallets,
    (select -sum(amount) from payment_transactions where payment_method = 'wallet_debit') as debits,
    (select sum(floor(extract(epoch from moment - since) / 3600))::bigint from instance,
        (select max(started_at) as moment from billing_runs where kind = 'cycle' and billing_is_successful(outcome)) r where since <= moment) due,
    sum(amount) filter (where status = 'billed') as charges, count(*) filter (where status = 'billed') as periods,
    count(*) filter (where status = 'billed' and abs(amount - by_hand) >= 0.01) as off_price,
    sum(hours) filter (where status = 'billed') as charged, sum(hours) filter (where status = 'failed') as unpaid,
    sum(owed) filter (where reason = 'insufficient_balance') as owed,
    count(*) filter (where reason = 'insufficient_balance') as short,
    count(*) filter (where reason = 'wallet_missing') as without_wallet,
    count(*) filter (where status = 'failed' and reason not in ('insufficient_balance', 'wallet_missing')) as others
from period;
-- Two example charges of a few days, one at a plan's price and one at the default, which can be checked by hand.
create temporary view examples as
select distinct on (price_source = 'default') * from period
where status = 'billed' and (plan is not null or price_source = 'default')
order by price_source = 'default', amount = round(by_hand, 2) desc, hours between 24 and 99 desc, hours desc, id;
-- Two of three wallets that are short of money are paid what they owe, plus $1,500.
create function pg_temp.top_up() returns table (amount numeric, wallets bigint) language sql as $$
    with owing as (
        select organization_id, ceil(sum(owed)) + 1500 as amount, row_number() over (order by organization_id) as number
        from period where status = 'failed' and reason = 'insufficient_balance' group by organization_id
    ), paid as (
        insert into payment_transactions (organization_id, amount, payment_method, payment_provider, status)
        select organization_id, amount, 'card', 'stripe', 'completed' from owing where number % 3 <> 0 returning *
    ), filled as (
        update wallets w set balance = w.balance + p.amount from paid p where p.organization_id = w.organization_id
    )
    select sum(p.amount), count(*) from paid p
$$;
-- Adds copies of instances that were created hours ago and never billed. Their organizations all have wallets.
create function pg_temp.add_instances(number bigint) returns void language sql as $$
    insert into vps_instances (organization_id, plan_id, provider_instance_id, label, status, created_at, updated_at)
    select organization_id, plan_id, provider_instance_id || '-2', label || '-2', 'running', moment, moment
    from (select *, now() - interval '1 hour' * (1.2 + 9 * random()) as moment from vps_instances
        where organization_id in (select organization_id from wallets) order by id limit number) copied
$$;
