-- The report at the end of the first migration: what the database held when the controller adopted it. These statements only read.

-- name: adoption_wallets
-- Wallets by state: adopted, adopted with a difference as baseline, or left out with the reason.
select s.state, count(*) as wallets, sum(s.amount) as amount, (array_agg(s.slug order by s.slug))[1:5] as examples
from (
    select o.slug, case
            when w.id is null then 'wallet_missing'
            when w.wallets > 1 then 'wallet_duplicate'
            when w.balance is null then 'balance_null'
            when w.balance = 'NaN' then 'balance_nan'
            when abs(w.balance) = 'infinity' then 'balance_infinite'
            when b.wallet_id is null then 'not_adopted'
            when b.baseline <> 0 then 'drifting'
            else 'exact'
        end as state,
        case when b.wallet_id is not null then abs(b.baseline) when abs(w.balance) < 'infinity' then w.balance end as amount
    from organizations o
    left join (select wallets.*, count(*) over (partition by organization_id) as wallets from wallets) w on w.organization_id = o.id
    left join billing_wallet_baselines b on b.wallet_id = w.id
    where w.id is not null or exists (select from vps_instances i where i.organization_id = o.id)
) s
group by s.state
order by s.state in ('exact', 'drifting') desc, s.state

-- name: adoption_balances
-- Adopted wallets by currency; `negative` counts those below zero.
select coalesce(upper(w.currency), 'none') as currency, count(*) as wallets, sum(w.balance) as balance,
    count(*) filter (where w.balance < 0) as negative
from wallets w
where exists (select from billing_wallet_baselines b where b.wallet_id = w.id) and abs(w.balance) < 'infinity'
group by 1
order by 1

-- name: adoption_instances
-- Unbilled hours. `backlog` counts the instances that the first cycle will not charge.
select count(*) as instances, count(*) filter (where d.hours > 0) as due, coalesce(sum(d.hours), 0)::bigint as hours,
    count(*) filter (where d.hours > %(max_backlog_hours)s) as backlog,
    coalesce(sum(d.hours) filter (where d.hours > %(max_backlog_hours)s), 0)::bigint as backlog_hours,
    count(*) filter (where d.hours is null) as unknown_start,
    count(*) filter (where d.last_billed_at is null) as never_billed
from (
    select i.last_billed_at, case when billing_is_moment(p.starts_at) then greatest(billing_whole_hours(p.starts_at, now()), 0) end as hours
    from vps_instances i
    cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) p
) d

-- name: adoption_backlog_amount
-- What the backlog costs at current prices.
select coalesce(sum(billing_charge(s.monthly_price, s.starts_at, s.hours)) filter (where billing_is_price(s.monthly_price)), 0) as amount
from billing_segments(array(
    select i.id from vps_instances i
    where billing_is_moment(coalesce(i.last_billed_at, i.created_at))
        and billing_whole_hours(coalesce(i.last_billed_at, i.created_at), now()) > %(max_backlog_hours)s
), now(), %(default_monthly_price)s) s

-- name: adoption_daemons
select daemon_instance_id, status, heartbeat_at, count(*) over () as found
from billing_daemon_status
where not billing_is_our_status(metadata)
order by heartbeat_at desc nulls last
limit 5

-- name: adoption_periods
select status, count(*) as periods, coalesce(sum(total_amount) filter (where abs(total_amount) < 'infinity'), 0) as amount
from vps_billing_cycles
where not billing_is_ours(metadata)
group by status
order by status

-- name: adoption_payments
select case
        when abs(amount) < 'infinity' is not true then 'without an amount'
        when metadata ->> 'wallet_type' is not null then 'of other wallets'
        when amount > 0 then 'credits'
        else 'debits'
    end as kind, status, count(*) as payments, sum(amount) filter (where abs(amount) < 'infinity') as amount
from payment_transactions
where not billing_is_ours(metadata)
group by 1, 2
order by 1, 2
