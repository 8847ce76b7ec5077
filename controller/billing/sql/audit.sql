-- The invariants of money. Each returns (subject, detail, exempt) for every row that breaks it. `exempt` marks rows that are
-- older than the controller's adoption of the database, or that another program wrote. They are reported, but not as
-- violations. The differences of wallets are always exempt, because the application may change wallets. The parameter
-- `organization` restricts the check to one organization; null checks all of them. An `or` keeps `in (select ...)` from using
-- an index, so these restrictions compare with an array. All run in one read-only snapshot. "Our" rows are those for which
-- billing_is_ours(metadata) is true.

-- name: audit_summary
-- A template: the statement of one invariant goes between the parentheses.
select count(*) filter (where not exempt) as violations, count(*) filter (where exempt) as exempt,
    coalesce((array_agg(subject || ': ' || detail) filter (where not exempt))[1:%(examples)s], '{}') as examples,
    coalesce((array_agg(subject || ': ' || detail) filter (where exempt))[1:%(examples)s], '{}') as exempt_examples
from (
    {invariant}
) as broken

-- name: audit_wallet_balance
-- wallet = sum of its completed transactions since adoption. The application writes wallets as absolute values, so it causes the
-- differences, and they are exempt. `reconcile` corrects or accepts them.
select 'wallet ' || w.id as subject,
    'holds ' || w.balance || ', its transactions since adoption make it ' || b.baseline + coalesce(t.completed, 0)
        || coalesce(': ' || c.parts, '') as detail,
    true as exempt
from wallets w
join billing_wallet_baselines b on b.wallet_id = w.id
left join (
    -- The condition is as at adoption. It is a filter because the planner expects few rows to meet it, and would sort them.
    select organization_id, sum(amount) filter (where billing_is_of_wallet(status, amount, metadata)) as completed
    from payment_transactions
    where (%(organization)s::uuid is null or organization_id = %(organization)s)
    group by organization_id
) t on t.organization_id = w.organization_id
left join lateral (
    select string_agg(part.key || ' ' || part.value, ', ' order by part.key) as parts
    from billing_wallet_comparison(w.organization_id) as compared, jsonb_each_text(compared.explanation) part
) c on true
where w.balance is distinct from b.baseline + coalesce(t.completed, 0)
    and w.balance <> 'NaN'
    and (%(organization)s::uuid is null or w.organization_id = %(organization)s)

-- name: audit_wallet_state
-- no negative, null, NaN or duplicate wallet
select 'wallet ' || w.id as subject,
    case
        when w.balance is null then 'its balance is null'
        when w.balance = 'NaN' then 'its balance is NaN'
        when w.wallets > 1 then 'its organization ' || w.organization_id || ' has ' || w.wallets || ' wallets'
        else 'its balance is ' || w.balance
    end as detail,
    not w.adopted or coalesce(w.balance < 0 and w.wallets = 1 and w.balance >= b.adopted_balance, false) as exempt
from (
    select wallets.*, count(*) over organization as wallets,
        bool_or(exists (select from billing_wallet_baselines b where b.wallet_id = wallets.id)) over organization as adopted
    from wallets
    where (%(organization)s::uuid is null or organization_id = %(organization)s)
    window organization as (partition by organization_id)
) w
left join billing_wallet_baselines b on b.wallet_id = w.id
where w.balance is null or w.balance = 'NaN' or w.balance < 0 or w.wallets > 1

-- name: audit_periods
-- billed periods of an instance neither overlap nor leave a gap
with own as (
    -- Without metadata, so that sorting all periods stays cheap. An instance may have moved, so its periods in other
    -- organizations count too.
    select id, vps_instance_id, organization_id, billing_period_start, lag(billing_period_end) over (
        partition by vps_instance_id order by billing_period_start, billing_period_end) as previous_end
    from vps_billing_cycles
    where billing_is_ours(metadata) and status in ('billed', 'refunded') and (%(organization)s::uuid is null or vps_instance_id = any (array(
        select c.vps_instance_id from vps_billing_cycles c where c.organization_id = %(organization)s)))
)
select 'instance ' || o.vps_instance_id as subject,
    case when o.previous_end > o.billing_period_start then 'period ' || o.id || ' overlaps the one before it'
        else 'gap of ' || (o.billing_period_start - o.previous_end) || ' before period ' || o.id end as detail,
    o.previous_end < o.billing_period_start
        and billing_gap_is_lawful(o.vps_instance_id, o.previous_end, o.billing_period_start,
            (select c.metadata from vps_billing_cycles c where c.id = o.id)) as exempt
from own o
where o.previous_end <> o.billing_period_start and (%(organization)s::uuid is null or o.organization_id = %(organization)s)
union all
select 'instance ' || o.vps_instance_id,
    'period ' || f.id || ', which this controller did not write, overlaps period ' || o.id,
    f.billing_period_start < (select min(first.billing_period_start) from vps_billing_cycles first
        where first.vps_instance_id = o.vps_instance_id and first.status in ('billed', 'refunded') and billing_is_ours(first.metadata))
from vps_billing_cycles f
cross join lateral (
    -- `offset 0` makes the planner look up each f's neighbours by index. Rows of other programs are few, or older than ours.
    select c.id, c.vps_instance_id
    from vps_billing_cycles c
    where c.vps_instance_id = f.vps_instance_id
        and c.billing_period_start < f.billing_period_end and c.billing_period_end > f.billing_period_start
        and c.status in ('billed', 'refunded') and billing_is_ours(c.metadata)
        and (%(organization)s::uuid is null or c.organization_id = %(organization)s)
    offset 0
) o
where f.status in ('billed', 'refunded') and not billing_is_ours(f.metadata)
    and (%(organization)s::uuid is null or f.vps_instance_id = any (array(
        select c.vps_instance_id from vps_billing_cycles c where c.organization_id = %(organization)s)))

-- name: audit_last_billed
-- last_billed_at = end of the last billed period
select 'instance ' || i.id as subject,
    'last_billed_at is ' || coalesce(i.last_billed_at::text, 'null') || ', its last billed period ends ' || p.last_end as detail,
    -- another program, usually the application's own billing, may move it forward
    coalesce(i.last_billed_at > p.last_end, false) as exempt
from vps_instances i
join (
    select vps_instance_id, max(billing_period_end) as last_end
    from vps_billing_cycles
    where status in ('billed', 'refunded') and billing_is_ours(metadata)
        and (%(organization)s::uuid is null or vps_instance_id = any (array(
            select i.id from vps_instances i where i.organization_id = %(organization)s)))
    group by vps_instance_id
) p on p.vps_instance_id = i.id
where i.last_billed_at is distinct from p.last_end and (%(organization)s::uuid is null or i.organization_id = %(organization)s)

-- name: audit_whole_hours
-- whole and past hours only
select 'period ' || id as subject,
    'from ' || billing_period_start || ' to ' || billing_period_end || ' for ' || coalesce(metadata ->> 'hours', '?') || ' hours' as detail,
    false as exempt
from vps_billing_cycles
where billing_is_ours(metadata) and status in ('billed', 'refunded')
    and (%(organization)s::uuid is null or organization_id = %(organization)s)
    and (billing_period_end <= billing_period_start
        or billing_period_end > clock_timestamp()
        or billing_period_end is distinct from billing_period_start + (metadata ->> 'hours')::bigint * interval '1 hour')

-- name: audit_transactions
-- every billed amount has one transaction of the same organization, and every transaction has its billed period
select 'period ' || c.id as subject,
    case
        when t.id is null then 'charged ' || c.total_amount || ' without a transaction'
        when t.organization_id <> c.organization_id then 'paid by transaction ' || t.id || ' of another organization'
        when t.amount <> -c.total_amount then 'charged ' || c.total_amount || ', transaction ' || t.id || ' says ' || t.amount
        else 'transaction ' || t.id || ' is ' || t.status
    end as detail,
    false as exempt
from vps_billing_cycles c
left join payment_transactions t on t.id = c.payment_transaction_id
where billing_is_ours(c.metadata) and c.status = 'billed'
    and (%(organization)s::uuid is null or c.organization_id = %(organization)s)
    and case when c.total_amount = 0 then t.id is not null
        else t.id is null or t.organization_id <> c.organization_id or t.amount <> -c.total_amount or t.status <> 'completed' end
union all
select distinct 'transaction ' || t.id, 'of ' || t.amount || ' has ' || t.periods || ' periods', false
from (
    select t.id
    from payment_transactions t
    -- the cast fails for a malformed id
    where case when billing_is_ours(t.metadata) then (t.metadata ->> 'vps_instance_id')::uuid is not null end
        and (%(organization)s::uuid is null or t.organization_id = %(organization)s)
        and not exists (select from vps_billing_cycles c where c.payment_transaction_id = t.id)
    union all
    -- Ids are unique, so if two periods name one payment, at least one of them has another id than the payment. Few periods do:
    -- a charge gives its period and its payment the same id, unless the period was an open row.
    select c.payment_transaction_id
    from vps_billing_cycles c
    where c.payment_transaction_id <> c.id and (%(organization)s::uuid is null or c.payment_transaction_id = any (array(
        select t.id from payment_transactions t where t.organization_id = %(organization)s)))
) suspect
cross join lateral (
    -- `offset 0` looks up only the suspects. Deleting an instance deletes its periods but not its transactions.
    select t.id, t.amount, (select count(*) from vps_billing_cycles c where c.payment_transaction_id = t.id) as periods
    from payment_transactions t
    where t.id = suspect.id and billing_is_ours(t.metadata)
        and exists (select from vps_instances i where i.id = (t.metadata ->> 'vps_instance_id')::uuid)
    offset 0
) t
where t.periods <> 1

-- name: audit_price_clock
-- every amount, with what was waived, is what the price clock gives for the row's own metadata
select 'period ' || id as subject,
    'charged ' || total_amount || case when metadata ? 'waived' then ' and waived ' || billing_waived(metadata) else '' end || ', the price clock says '
        || billing_charge((metadata ->> 'monthly_price')::numeric, billing_period_start, (metadata ->> 'hours')::bigint) as detail,
    false as exempt
from vps_billing_cycles
where billing_is_ours(metadata) and status in ('billed', 'refunded')
    and (%(organization)s::uuid is null or organization_id = %(organization)s)
    and total_amount + billing_waived(metadata) is distinct from
        billing_charge((metadata ->> 'monthly_price')::numeric, billing_period_start, (metadata ->> 'hours')::bigint)

-- name: audit_open_rows
-- the open rows of an instance are contiguous
select 'instance ' || o.vps_instance_id as subject,
    case when o.previous_end > o.billing_period_start then 'open row ' || o.id || ' overlaps the one before it'
        else 'gap of ' || (o.billing_period_start - o.previous_end) || ' before open row ' || o.id end as detail,
    false as exempt
from (
    select id, vps_instance_id, billing_period_start,
        lag(billing_period_end) over (partition by vps_instance_id order by billing_period_start) as previous_end
    from vps_billing_cycles
    where status = 'failed' and billing_is_ours(metadata)
        and (%(organization)s::uuid is null or organization_id = %(organization)s)
) o
where o.previous_end <> o.billing_period_start

-- name: audit_overdue
-- nothing overdue, as of the last completed cycle, without a recorded reason
select 'instance ' || i.id as subject,
    'unbilled since ' || coalesce(coalesce(i.last_billed_at, i.created_at)::text, 'ever') || ' and no reason recorded' as detail,
    -- inserted after that cycle with an older created_at, unless the cycle itself found that it had missed instances
    not run.missed and i.last_billed_at is null and not exists (
        select from vps_billing_cycles c where c.vps_instance_id = i.id and billing_is_ours(c.metadata)) as exempt
from (
    select started_at, failures_by_reason ? 'missed' as missed
    from billing_runs
    where kind = 'cycle' and billing_is_successful(outcome)
    order by started_at desc
    limit 1
) run
join vps_instances i on billing_due(i.last_billed_at, i.created_at, run.started_at)
where (%(organization)s::uuid is null or i.organization_id = %(organization)s)
    and not exists (
        select from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata))
    and exists (
        select from billing_position(i.id, i.last_billed_at, i.created_at) p
        where billing_due(p.starts_at, null, run.started_at))

-- name: audit_terms
-- no row written under a term that was not the newest
select 'batch ' || b.id as subject,
    'written under term ' || b.term || ' at ' || b.written_at || ', after term ' || later.term || ' had begun' as detail,
    false as exempt
from billing_batches b
join lateral (
    select term, minted_at from billing_terms where term > b.term order by term limit 1
) later on b.written_at >= later.minted_at
where %(organization)s::uuid is null
union all
select 'period ' || c.id, 'names run ' || coalesce(c.metadata ->> 'run', '?') || ' and term ' || coalesce(c.metadata ->> 'term', '?')
    || ', which do not belong together', false
from vps_billing_cycles c
left join billing_runs r on r.id = (c.metadata ->> 'run')::bigint
where billing_is_ours(c.metadata)
    and (%(organization)s::uuid is null or c.organization_id = %(organization)s)
    and r.term is distinct from (c.metadata ->> 'term')::bigint

-- name: audit_corrections
-- What operators did about differences.
select count(*) as corrections, coalesce(sum(abs(amount)), 0) as amount
from billing_corrections
where %(organization)s::uuid is null or organization_id = %(organization)s

-- name: audit_older_rows
select count(*) as older_rows
from vps_billing_cycles
where not billing_is_ours(metadata) and (%(organization)s::uuid is null or organization_id = %(organization)s)
