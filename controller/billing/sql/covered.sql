-- The fast path of a batch: fence, charge_covered and charge_wallets, in one transaction. Organizations that it leaves over
-- take the ordered path (ordered.sql) in the same transaction. Only the last statement locks wallets, so a top-up waits for a
-- commit and not for a batch.

-- name: charge_covered
-- Charges the organizations that plainly can pay: exactly one wallet with a valid balance that covers everything, no open
-- row, one price for all hours, and a ledger that is not ahead of last_billed_at. Returns the wallets with the amount to take
-- from each, and the organizations left over. Locks nothing; charge_wallets checks that the wallets can still pay.
with due as materialized (
    select id, organization_id, plan_id, label, coalesce(created_at, 'infinity') as created_at, last_billed_at,
        coalesce(last_billed_at, created_at) as period_start
    from vps_instances
    where organization_id between %(first_organization)s and %(last_organization)s
        and billing_due(last_billed_at, created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(created_at, 'infinity'), id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    order by organization_id, coalesce(created_at, 'infinity'), id
    limit %(batch_size)s
), indebted as materialized (
    select vps_instance_id from vps_billing_cycles
    where vps_instance_id = any (array(select id from due)) and status = 'failed' and billing_is_ours(metadata)
), price as materialized (
    select key, monthly_price, source, valid_from from billing_price_history() where valid_to = 'infinity'
), costed as materialized (
    -- amount is null unless the fast path can charge the instance. `is not true` keeps the planner from making a join of
    -- `in`, because it can't estimate the size of that join
    select due.id, due.organization_id, due.label, due.last_billed_at, due.period_start, counted.hours, p.monthly_price,
        p.source as price_source, position.ledger_end < due.period_start as moved_forward,
        case when billing_is_price(p.monthly_price) and p.valid_from <= due.period_start and counted.hours is not null
                and (position.ledger_end > due.period_start) is not true
                and (due.id in (select vps_instance_id from indebted)) is not true
            then billing_charge(p.monthly_price, due.period_start, counted.hours) end as amount
    from due
    cross join lateral (
        select case when billing_is_moment(due.period_start) then billing_whole_hours(due.period_start, %(as_of)s) end as hours
    ) counted
    cross join lateral billing_position(due.id, due.last_billed_at, due.created_at) position
    left join price p on p.key = due.plan_id
), covered as materialized (
    select o.organization_id, o.amount, w.wallet_id
    from (select organization_id, sum(amount) as amount from costed group by 1 having count(amount) = count(*)) o
    join billing_sound_wallets(%(currency)s) w on w.organization_id = o.organization_id and w.balance >= o.amount
), charge as materialized (
    select *, period_start + hours * interval '1 hour' as period_end, billing_time_ordered_uuid(clock_timestamp()) as charge_id
    from costed where (organization_id in (select organization_id from covered)) is true order by id
), paid as (
    insert into payment_transactions
        (id, organization_id, amount, currency, payment_method, payment_provider, status, description, metadata)
    select charge_id, organization_id, -amount, %(currency)s, 'wallet_debit', 'internal', 'completed',
        'VPS ' || coalesce(label, id::text) || ', ' || hours || ' h',
        %(origin)s::jsonb || jsonb_build_object('vps_instance_id', id, 'hours', hours)
    from charge where amount > 0 returning amount
), period as (
    -- a period and its payment are one charge and share its id
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, payment_transaction_id, metadata)
    select charge_id, id, organization_id, period_start, period_end, round(monthly_price / 730, 4), amount, 'billed',
        case when amount > 0 then charge_id end,
        case when moved_forward then %(origin)s::jsonb || '{"moved_forward": true}' else %(origin)s::jsonb end
            || jsonb_build_object('hours', hours, 'monthly_price', monthly_price, 'price_source', price_source)
    from charge returning total_amount
), advanced as (
    -- compare and swap: another session may have moved last_billed_at
    update vps_instances i set last_billed_at = c.period_end from charge c
    where i.id = c.id and i.last_billed_at is not distinct from c.last_billed_at
    returning i.last_billed_at = c.period_end as written
), total as (
    select count(*) as instances, coalesce(sum(hours), 0)::bigint as hours, coalesce(sum(amount), 0.00) as amount,
        count(*) filter (where amount > 0) as payments from charge
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount)
    select %(run_id)s, %(term)s, clock_timestamp(), instances, hours, amount from total where instances > 0 returning id
)
select t.instances, t.hours, t.amount, 0 as debts, 0 as failures, 0 as suspended, (select count(*) from due) as due,
    -- a trigger or a rule may have dropped or changed a row
    (select (count(*), coalesce(sum(amount), 0)) = (t.payments, -t.amount) from paid)
        and (select (count(*), coalesce(sum(total_amount), 0)) = (t.instances, t.amount) from period)
        and (select count(*) filter (where written) = t.instances from advanced)
        and (select count(*) = (t.instances > 0)::int from batch_recorded) as consistent,
    array(select wallet_id from covered where amount > 0) as wallets,
    array(select amount from covered where amount > 0) as amounts,
    array(select distinct organization_id from due where (organization_id in (select organization_id from covered)) is not true)
        as left_over,
    last_due.created_at::text as last_created_at, last_due.id as last_id
from total t
left join (select created_at, id from due order by organization_id desc, created_at desc, id desc limit 1) last_due on true

-- name: charge_wallets
-- Debits the wallets in the one global order. Counts those that could pay and whose balance fell by exactly their amount. If
-- the count is too low, the caller rolls the batch back.
with locked as materialized (
    select w.id, o.amount, w.balance
    from unnest(%(wallets)s::uuid[], %(amounts)s::numeric[]) as o (wallet_id, amount)
    join wallets w on w.id = o.wallet_id
    order by w.organization_id, w.id
    for no key update of w
), charged as (
    update wallets w
    set balance = w.balance - l.amount, updated_at = now()
    from locked l
    where w.id = l.id and w.balance >= l.amount
    returning w.balance = l.balance - l.amount as exact
)
select count(*) filter (where exact) as charged from charged
