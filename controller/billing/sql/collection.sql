-- Collections: between two cycles the leader collects debts of organizations whose wallet was topped up.

-- name: payable_organizations
-- Organizations whose wallet can now pay the oldest owed hour of at least one instance. It reads each debt once, by the index of
-- open rows, so nothing is read if there are no debts. hourly_rate decides for most of them: an hour costs at most a cent less.
-- Nothing is collected during a takeover, because the application may be billing.
select distinct d.organization_id
from (
    select distinct on (c.vps_instance_id) c.organization_id, c.billing_period_start, c.hourly_rate, c.metadata
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' = 'insufficient_balance'
    order by c.vps_instance_id, c.billing_period_start
) d
join billing_sound_wallets(%(currency)s) w on w.organization_id = d.organization_id
where w.balance >= 0.01 and w.balance > d.hourly_rate - 0.0101
    and case when jsonb_typeof(d.metadata -> 'monthly_price') = 'number'
        then billing_charge((d.metadata ->> 'monthly_price')::numeric, d.billing_period_start, 1) <= w.balance end
    and not exists (select from billing_leadership l where l.bill_after > clock_timestamp())
order by d.organization_id
limit 1000

-- name: begin_collection
-- A collection charges the hours that were due when the last cycle began, and so no hour that a cycle has not seen.
insert into billing_runs (term, holder, started_at, kind)
values (%(term)s, %(holder)s, clock_timestamp(), 'collection')
returning id, coalesce((select max(r.started_at) from billing_runs r where r.kind = 'cycle'), started_at) as as_of
