-- Collections: the leader collects debts of organizations whose wallet was topped up, between two cycles or during a paced one.

-- name: payable_organizations
-- Organizations whose wallet can now pay the oldest owed hour of at least one instance. The index of debts gives the lowest hourly
-- rate of each organization, and an hour costs at least the whole cents of its rate. So almost every organization that can't pay is
-- ruled out without reading its rows, and nothing is read if there are no debts. Nothing is collected while billing is halted, or
-- during a takeover, because the application may be billing.
with owed as materialized (
    select organization_id, trunc(min(hourly_rate) - 0.0001, 2) as lowest
    from vps_billing_cycles
    where status = 'failed' and billing_is_ours(metadata) and metadata ->> 'reason' = 'insufficient_balance'
        and not exists (select from billing_leadership l where l.bill_after > clock_timestamp())
        and not exists (select from billing_notices() n where n.halts)
    group by organization_id
), candidate as materialized (
    select w.organization_id, w.balance
    from owed o
    join billing_sound_wallets(%(currency)s) w on w.organization_id = o.organization_id
    where w.balance >= 0.01 and w.balance >= o.lowest
)
select c.organization_id
from candidate c
where exists (
    select from vps_instances i
    cross join lateral (
        select d.billing_period_start, d.metadata
        from vps_billing_cycles d
        where d.vps_instance_id = i.id and d.status = 'failed' and billing_is_ours(d.metadata)
        order by d.billing_period_start
        limit 1
    ) oldest
    where i.organization_id = c.organization_id and oldest.metadata ->> 'reason' = 'insufficient_balance'
        and case when jsonb_typeof(oldest.metadata -> 'monthly_price') = 'number'
            then billing_charge((oldest.metadata ->> 'monthly_price')::numeric, oldest.billing_period_start, 1) <= c.balance end)
order by c.organization_id
limit 1000

-- name: begin_collection
-- A collection charges the hours that were due when the last cycle began, so it charges no hour that a cycle has not seen.
insert into billing_runs (term, holder, started_at, kind)
values (%(term)s, %(holder)s, clock_timestamp(), 'collection')
returning id, coalesce((select max(r.started_at) from billing_runs r where r.kind = 'cycle'), started_at) as as_of
