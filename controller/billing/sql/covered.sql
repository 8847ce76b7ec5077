-- The fast path of a batch: fence, charge_covered and charge_wallets, in one transaction. In between, the organizations that
-- charge_covered leaves over take the ordered path (ordered.sql). charge_wallets comes last, because it locks the wallets of all the
-- others: a top-up waits for a commit and not for a batch.

-- name: charge_covered
-- Charges the organizations that plainly can pay: exactly one wallet with a valid balance that covers everything, and every
-- instance reckoned by billing_reckon_covered (migration 051). Returns the wallets with the amount to take from each, and the
-- organizations left over. Locks nothing; charge_wallets checks that the wallets can still pay.
with costed as materialized (
    select * from billing_reckon_covered(%(first_organization)s, %(last_organization)s, %(after_created_at)s, %(after_id)s,
        %(as_of)s, %(max_backlog_hours)s, %(batch_size)s)
), covered as materialized (
    select o.organization_id, o.amount, w.wallet_id, w.balance
    from (select organization_id, sum(amount) as amount from costed group by 1 having count(amount) = count(*)) o
    join billing_sound_wallets(%(currency)s) w on w.organization_id = o.organization_id and w.balance >= o.amount
), charge as materialized (
    -- a wallet's payments have ascending ids and times, and each begins at the balance that the previous one left; the writes
    -- visit instances in the order of their ids, so each index page once
    select * from (
        select c.*, c.period_start + c.hours * interval '1 hour' as period_end, o.balance - sum(c.amount) over chain as balance_after,
            row_number() over chain as place,
            billing_time_ordered_uuid(clock_timestamp() + row_number() over chain * interval '1 microsecond') as charge_id
        from costed c
        join covered o on o.organization_id = c.organization_id
        window chain as (partition by c.organization_id order by c.created_at, c.id)
    ) chained
    order by id
), paid as (
    insert into payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider, status,
        description, metadata, created_at)
    select charge_id, organization_id, -amount, %(currency)s, 'wallet_debit', 'internal', 'completed',
        billing_charge_description(label, id, hours),
        %(origin)s::jsonb || jsonb_build_object('vps_instance_id', id, 'hours', hours, 'balance_before', balance_after + amount,
            'balance_after', balance_after),
        now() + place * interval '1 microsecond'
    from charge where amount > 0 returning amount
), period as (
    -- a period and its payment are one charge and share its id
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, payment_transaction_id, metadata)
    select charge_id, id, organization_id, period_start, period_end, round(monthly_price / 730, 4), amount, 'billed',
        case when amount > 0 then charge_id end,
        case when moved_forward then %(origin)s::jsonb || '{"moved_forward": true}' else %(origin)s::jsonb end
            || billing_period_facts(label, hours, monthly_price, price_source)
    from charge returning total_amount
), advanced as (
    -- compare and swap: another session may have moved last_billed_at
    update vps_instances i set last_billed_at = c.period_end from charge c
    where i.id = c.id and i.last_billed_at is not distinct from c.last_billed_at
    returning i.last_billed_at = c.period_end as written
), balance_left as (
    -- Runs before the wallets are locked, so correct_balances may have to correct left_balance. If the wallet doesn't hold what
    -- the last charge left, another program has changed it: changed_at marks it for the comparison after the cycle.
    update billing_wallet_baselines b
    set left_balance = c.balance - c.amount,
        changed_at = case when b.left_balance <> c.balance then coalesce(b.changed_at, now()) else b.changed_at end
    from covered c
    where b.wallet_id = c.wallet_id and c.amount > 0
    returning b.wallet_id
), total as (
    select count(*) as instances, coalesce(sum(hours), 0)::bigint as hours, coalesce(sum(amount), 0.00) as amount,
        count(*) filter (where amount > 0) as payments from charge
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, hours, amount)
    select %(run_id)s, %(term)s, clock_timestamp(), instances, hours, amount from total where instances > 0 returning id
)
select t.instances, t.hours, t.amount, 0 as debts, 0 as failures, 0 as suspended, (select count(*) from costed) as due,
    -- a trigger or a rule may have dropped or changed a row
    (select (count(*), coalesce(sum(amount), 0)) = (t.payments, -t.amount) from paid)
        and (select (count(*), coalesce(sum(total_amount), 0)) = (t.instances, t.amount) from period)
        and (select count(*) filter (where written) = t.instances from advanced)
        and (select count(*) = (t.instances > 0)::int from batch_recorded)
        and (select count(*) from balance_left) = (select count(*) from covered where amount > 0) as consistent,
    array(select wallet_id from covered where amount > 0) as wallets,
    array(select amount from covered where amount > 0) as amounts,
    array(select balance from covered where amount > 0) as balances,
    array(select distinct organization_id from costed where (organization_id in (select organization_id from covered)) is not true)
        as left_over,
    last_due.created_at::text as last_created_at, last_due.id as last_id
from total t
left join (select created_at, id from costed order by organization_id desc, created_at desc, id desc limit 1) last_due on true

-- name: charge_wallets
-- Debits the wallets in the one global order. Counts those that could pay and whose balance fell by exactly their amount. If
-- the count is too low, the caller rolls the batch back. Returns the organizations whose balance has changed since
-- charge_covered read it, with their wallets, and by how much.
with locked as materialized (
    select w.id, w.organization_id, o.amount, w.balance, w.balance - o.balance as difference
    from unnest(%(wallets)s::uuid[], %(amounts)s::numeric[], %(balances)s::numeric[]) as o (wallet_id, amount, balance)
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
select (select count(*) filter (where exact) from charged) as charged,
    array(select organization_id from locked where difference <> 0 order by id) as moved,
    array(select id from locked where difference <> 0 order by id) as moved_wallets,
    array(select difference from locked where difference <> 0 order by id) as differences

-- name: correct_balances
-- Corrects balance_before and balance_after in this transaction's payments of a few organizations, and the balance that is
-- kept as left. The ids of these payments are no older than the transaction.
with written as materialized (
    select id, organization_id
    from payment_transactions
    where id >= (lpad(to_hex(floor(extract(epoch from now()) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
        and billing_is_ours(metadata) and created_at >= now()
), corrected as (
    update payment_transactions p
    set metadata = p.metadata || jsonb_build_object(
        'balance_before', (p.metadata ->> 'balance_before')::numeric + m.difference,
        'balance_after', (p.metadata ->> 'balance_after')::numeric + m.difference)
    from unnest(%(organizations)s::uuid[], %(differences)s::numeric[]) as m (organization_id, difference)
    join written w on w.organization_id = m.organization_id
    where p.id = w.id
    returning p.organization_id
), balance_left as (
    update billing_wallet_baselines b
    set left_balance = b.left_balance + m.difference, changed_at = coalesce(b.changed_at, now())
    from unnest(%(wallets)s::uuid[], %(differences)s::numeric[]) as m (wallet_id, difference)
    where b.wallet_id = m.wallet_id
)
select count(distinct organization_id) as organizations from corrected
