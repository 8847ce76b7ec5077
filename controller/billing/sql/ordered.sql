-- The ordered path of a batch, for organizations that the fast path leaves over: lock_organizations, adopt_wallets if needed,
-- reckon_ordered, clear_open_rows, settle_periods and settle_wallets, in one transaction that began with the fence.

-- name: lock_organizations
-- Locks the wallets in the one global order without waiting. Returns the organizations with a row that another session has
-- locked; the caller tries each of them again alone. reckon_ordered reads the locked rows again, with a snapshot that is newer
-- than the locks. Instances and open rows are usually locked by the statements that write them. After a failed try,
-- `lock_first` locks them here, as strongly as the writes need, to find out which organizations are locked.
with due as materialized (
    select distinct organization_id
    from vps_instances
    where organization_id = any (%(organizations)s::uuid[])
        and billing_due(last_billed_at, created_at, %(as_of)s)
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
    where %(lock_first)s and id in (select organization_id from due)
), locked_organization as materialized (
    select o.id
    from organizations o
    where o.id in (select id from organization) and (select count(*) from locked_wallet) >= 0  -- wallets first
    order by o.id
    for key share skip locked
), instance as materialized (
    select id, organization_id
    from vps_instances
    where %(lock_first)s and organization_id = any (%(organizations)s::uuid[])
        and billing_due(last_billed_at, created_at, %(as_of)s)
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
    where c.status = 'failed' and billing_is_ours(c.metadata)
), locked_debt as materialized (
    select c.id
    from vps_billing_cycles c
    where c.id in (select id from debt) and (select count(*) from locked_instance) >= 0
    order by c.id
    for no key update skip locked
)
select coalesce(array_agg(distinct organization_id), '{}') as locked_by_others,
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
) locked

-- name: adopt_wallets
-- Records the baseline of a wallet that is newer than migration 015, by the rule of that migration.
insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance, left_balance)
select w.id, w.organization_id, w.balance - coalesce(
    (select sum(t.amount) from payment_transactions t
     where t.organization_id = w.organization_id and billing_is_of_wallet(t.status, t.amount, t.metadata)), 0), w.balance, w.balance
from wallets w
where w.organization_id in (
        select organization_id from vps_instances
        where organization_id = any (%(organizations)s::uuid[])
            and billing_due(last_billed_at, created_at, %(as_of)s))
    and w.organization_id <> all (%(locked_by_others)s::uuid[])
    and not exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
    and abs(w.balance) < 'infinity'
    and not exists (select from wallets o where o.organization_id = w.organization_id and o.id <> w.id)
on conflict do nothing

-- name: take_from_wallet
-- Only for a dry run, whose earlier steps were rolled back.
update wallets set balance = balance - %(amount)s where organization_id = %(organization_id)s

-- name: reckon_ordered
-- Reads what each due instance owes, in segments of one price, and what the wallets pay of it, in the order of created_at
-- and id. Returns the segments as one JSON text that the statements below take unchanged; JSON keeps numeric exact.
with due as materialized (
    select id, organization_id, plan_id, label, coalesce(created_at, 'infinity') as created_at, last_billed_at
    from vps_instances
    where organization_id = any (%(organizations)s::uuid[]) and organization_id <> all (%(locked_by_others)s::uuid[])
        and billing_due(last_billed_at, created_at, %(as_of)s)
        and (%(after_id)s::uuid is null
            or (coalesce(created_at, 'infinity'), id) > (%(after_created_at)s::timestamptz, %(after_id)s::uuid))
    order by organization_id, coalesce(created_at, 'infinity'), id
    limit %(batch_size)s
), wallet as materialized (
    -- id, balance and currency are meaningful only if there is exactly one wallet
    select organization_id, count(*) as wallets, (array_agg(id))[1] as id, min(balance) as balance, min(currency) as currency
    from wallets
    where organization_id = any (%(organizations)s::uuid[])
    group by organization_id
), segment as materialized (
    select due.organization_id, due.created_at, due.label, due.plan_id, due.last_billed_at, s.*, h.failure_reason as suspended,
        billing_in_backlog(due.id, due.organization_id, min(s.starts_at) over (partition by due.id),
            (select billing_backlog_edge(%(as_of)s, %(max_backlog_hours)s))) as backlog
    from due
    join billing_segments(array(select id from due), %(as_of)s, %(default_monthly_price)s) s on s.instance_id = due.id
    left join lateral billing_suspended(due.organization_id) h on true
), judged as (
    select s.*, w.id as wallet_id, w.balance, w.currency,
        -- a segment without a usable price keeps its whole instance from being charged
        min(coalesce(billing_failure_reason(s.suspended, w.wallets, w.balance, w.currency, %(currency)s, s.start_known, s.hours,
            s.monthly_price), case when s.backlog then 'backlog' end)) over (partition by s.instance_id) as failure_reason,
        case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) else 0.00 end as cost
    from segment s
    left join wallet w on w.organization_id = s.organization_id
), covered as (
    select *, sum(cost) filter (where failure_reason is null) over (partition by organization_id) <= greatest(balance, 0) as covered
    from judged
), allotted as materialized (
    -- what a wallet pays if it can't pay everything
    select a.instance_id, a.starts_at, a.paid_hours
    from (
        select array_agg(instance_id order by created_at, instance_id, starts_at) as ids,
            array_agg(starts_at order by created_at, instance_id, starts_at) as starts,
            billing_affordable_segments(min(balance), array_agg(instance_id order by created_at, instance_id, starts_at),
                array_agg(monthly_price order by created_at, instance_id, starts_at),
                array_agg(starts_at order by created_at, instance_id, starts_at),
                array_agg(hours order by created_at, instance_id, starts_at)) as affordable
        from covered
        where failure_reason is null and not covered
        group by organization_id
    ) short
    cross join lateral unnest(short.ids, short.starts, short.affordable) as a (instance_id, starts_at, paid_hours)
), settled as materialized (
    select p.*, case when p.paid_hours = p.hours then p.cost when p.paid_hours = 0 then 0.00
        else billing_charge(p.monthly_price, p.starts_at, p.paid_hours) end as amount
    from (
        select c.instance_id, c.organization_id, c.label, c.plan_id, c.last_billed_at, c.starts_at, c.hours,
            c.monthly_price, c.price_source, c.created_at, c.balance,
            c.cost, c.row_id, c.since, c.failure_reason, c.backlog, c.ledger_end, c.wallet_id, c.currency,
            case when c.failure_reason is not null then 0 when c.covered then c.hours else a.paid_hours end as paid_hours
        from covered c
        left join allotted a on a.instance_id = c.instance_id and a.starts_at = c.starts_at
    ) p
)
select coalesce((select jsonb_agg(to_jsonb(settled) - 'plan_id') from settled), '[]')::text as segments,
    array(select id from due) as instances,
    coalesce((select jsonb_agg(jsonb_build_object('vps_instance_id', instance_id, 'label', label, 'plan_id', plan_id)) from (
        select distinct instance_id, label, plan_id from settled
        where failure_reason is null and price_source = 'default' order by instance_id limit 20) u), '[]') as priced_by_default,
    array(select distinct plan_id from settled where price_source = 'default' and plan_id is not null
        and not exists (select from billing_prices b where b.key = plan_id)) as unmatched_keys,
    last_due.created_at::text as last_created_at, last_due.id as last_id
from (select) as always
left join lateral (
    select created_at, id from due order by organization_id desc, created_at desc, id desc limit 1
) last_due on true

-- name: clear_open_rows
-- Deletes open rows that no segment continues: their hours are billed, or they have no price and are written again.
delete from vps_billing_cycles c
where c.vps_instance_id = any (%(instances)s::uuid[]) and c.status = 'failed' and billing_is_ours(c.metadata)
    and c.id not in (
        select s.row_id from jsonb_to_recordset(%(segments)s::jsonb) as s (row_id uuid) where s.row_id is not null)

-- name: settle_periods
-- Writes payments, billed periods and open rows for the segments of reckon_ordered. An open row that is paid in full becomes
-- the billed period. If part of it is still owed, the row stays open for that part.
with charge as materialized (
    -- a wallet's payments have ascending ids and times, and each begins at the balance that the previous one left
    select *, starts_at + paid_hours * interval '1 hour' as paid_until,
        case when amount > 0 then billing_time_ordered_uuid(clock_timestamp() + place * interval '1 microsecond') end as payment_id
    from (
        select *, balance - sum(amount) over chain as balance_after, row_number() over chain as place
        from jsonb_to_recordset(%(segments)s::jsonb) as s (
            instance_id uuid, organization_id uuid, label text, created_at timestamptz, balance numeric,
            starts_at timestamptz, hours bigint, monthly_price numeric, price_source text, cost numeric, row_id uuid, since jsonb,
            failure_reason text, backlog boolean, currency text, paid_hours bigint, amount numeric, ledger_end timestamptz,
            last_billed_at timestamptz)
        window chain as (partition by organization_id order by created_at, instance_id, starts_at)
    ) chained
    order by organization_id, place
), paid as (
    insert into payment_transactions (id, organization_id, amount, currency, payment_method, payment_provider, status,
        description, metadata, created_at)
    select payment_id, organization_id, -amount, currency, 'wallet_debit', 'internal', 'completed',
        billing_charge_description(label, instance_id, paid_hours),
        %(origin)s::jsonb || jsonb_build_object('vps_instance_id', instance_id, 'hours', paid_hours,
            'balance_before', balance_after + amount, 'balance_after', balance_after),
        now() + place * interval '1 microsecond'
    from charge where payment_id is not null
    returning amount
), period as materialized (
    -- limited to what the columns can hold; the metadata has the exact amount if it does not fit numeric(10,2)
    select *, case when billing_is_price(monthly_price) then round(monthly_price / 730, 4) else 0 end as hourly_rate,
        least(exact, 99999999.99) as total_amount
    from (
        select instance_id, organization_id, starts_at, paid_until as ends_at, monthly_price, amount as exact, 'billed' as status,
            payment_id, case when paid_hours = hours then row_id end as row_id,
            %(origin)s::jsonb || jsonb_strip_nulls(billing_period_facts(label, paid_hours, monthly_price, price_source)
                || jsonb_build_object('owed_since', case when paid_hours = hours then since end,
                    'moved_forward', case when ledger_end < starts_at and starts_at = last_billed_at then true end)) as metadata
        from charge where paid_hours > 0
        union all
        select instance_id, organization_id, paid_until, starts_at + hours * interval '1 hour', monthly_price, cost - amount,
            'failed', null, row_id,
            %(origin)s::jsonb || jsonb_strip_nulls(billing_period_facts(label, hours - paid_hours, monthly_price, price_source)
                || jsonb_build_object('reason', coalesce(failure_reason, 'insufficient_balance'),
                    'owed', cost - amount, 'since', coalesce(since, to_jsonb(%(as_of)s::timestamptz)),
                    'backlog', case when backlog then true end))
        from charge where paid_hours < hours
    ) p
), row_updated as (
    update vps_billing_cycles c
    set organization_id = p.organization_id, billing_period_start = p.starts_at, billing_period_end = p.ends_at,
        hourly_rate = p.hourly_rate, total_amount = p.total_amount, status = p.status,
        payment_transaction_id = p.payment_id, metadata = p.metadata,
        created_at = case when p.status = 'billed' then now() else c.created_at end  -- the application's month sums use it
    from period p where c.id = p.row_id
    returning c.total_amount
), row_inserted as (
    insert into vps_billing_cycles (id, vps_instance_id, organization_id, billing_period_start, billing_period_end,
        hourly_rate, total_amount, status, payment_transaction_id, metadata)
    select coalesce(payment_id, billing_time_ordered_uuid(clock_timestamp())), instance_id, organization_id, starts_at, ends_at,
        hourly_rate, total_amount, status, payment_id, metadata
    from period where row_id is null
    returning total_amount
)
-- A trigger or a rule may have dropped or changed a row. This statement's snapshot is older than the rows above, so an open row
-- that no segment continues is a row that clear_open_rows failed to delete.
select not exists (
        select from vps_billing_cycles c
        where c.vps_instance_id = any (%(instances)s::uuid[]) and c.status = 'failed' and billing_is_ours(c.metadata)
            and c.id not in (select row_id from charge where row_id is not null))
    and (select (count(*), coalesce(sum(amount), 0)) from paid)
        = (select (count(payment_id), -coalesce(sum(amount), 0)) from charge)
    and (select (count(*), coalesce(sum(total_amount), 0))
            from (select total_amount from row_updated union all select total_amount from row_inserted) w)
        = (select (count(*), coalesce(sum(total_amount), 0)) from period) as consistent

-- name: settle_wallets
-- Takes the money and advances the instances for the segments of reckon_ordered, and records the batch.
with charge as materialized (
    select *, starts_at + paid_hours * interval '1 hour' as paid_until,
        failure_reason is null and ledger_end is not null and (last_billed_at is null or ledger_end > last_billed_at) as behind
    from jsonb_to_recordset(%(segments)s::jsonb) as s (
        instance_id uuid, label text, last_billed_at timestamptz, starts_at timestamptz, hours bigint, failure_reason text,
        ledger_end timestamptz, wallet_id uuid, paid_hours bigint, amount numeric)
), wallet as materialized (
    select c.wallet_id, sum(c.amount) as amount, min(b.balance) as balance
    from charge c join wallets b on b.id = c.wallet_id
    where c.failure_reason is null
    group by c.wallet_id
), wallet_charged as (
    update wallets w
    set balance = w.balance - o.amount, updated_at = now()
    from wallet o
    where w.id = o.wallet_id and o.amount > 0 and w.balance >= o.amount
    returning w.balance = o.balance - o.amount as exact
), balance_left as (
    -- if the wallet doesn't hold what the last charge left, changed_at marks it for comparison, even if it pays nothing now
    update billing_wallet_baselines b
    set left_balance = o.balance - o.amount,
        changed_at = case when b.left_balance <> o.balance then coalesce(b.changed_at, now()) else b.changed_at end
    from wallet o
    where b.wallet_id = o.wallet_id and (o.amount > 0 or b.left_balance <> o.balance)
), instance as materialized (
    -- if the ledger is ahead of last_billed_at, correct last_billed_at
    select instance_id, min(label) as label, min(last_billed_at) as last_billed_at,
        bool_or(paid_hours > 0) as charged, bool_or(behind) as rewound,
        bool_or(failure_reason is not null and failure_reason not in ('audit_violation', 'suspended')) as failed,
        bool_or(failure_reason in ('audit_violation', 'suspended')) is true as suspended,
        bool_or(failure_reason is null and paid_hours < hours) as indebted, min(failure_reason) as failure_reason,
        greatest(max(paid_until) filter (where paid_hours > 0),
            max(ledger_end) filter (where behind)) as billed_until
    from charge
    group by instance_id
), advanced as (
    -- compare and swap: another session may have moved last_billed_at
    update vps_instances i
    set last_billed_at = n.billed_until
    from instance n
    where i.id = n.instance_id and n.billed_until is not null and i.last_billed_at is not distinct from n.last_billed_at
    returning i.last_billed_at = n.billed_until as written
), total as (
    select (select count(*) from instance) as due, (select count(*) from instance where charged) as instances,
        coalesce(sum(paid_hours), 0)::bigint as hours, coalesce(sum(amount), 0.00) as amount,
        (select count(*) from instance where charged and indebted) as charged_in_part,
        (select count(*) from instance where indebted) as debts,
        (select count(*) from instance where failed) as failures,
        (select count(*) from instance where suspended) as suspended,
        coalesce((select jsonb_object_agg(failure_reason, instances) from (
            select failure_reason, count(*) as instances from instance where failed group by 1) r), '{}') as failures_by_reason,
        count(distinct wallet_id) filter (where amount > 0) as wallets
    from charge
), batch_recorded as (
    insert into billing_batches (run_id, term, written_at, instances, charged_in_part, hours, amount, debts, failures,
        suspended, failures_by_reason)
    select %(run_id)s, %(term)s, clock_timestamp(), instances, charged_in_part, hours, amount, debts, failures,
        suspended, failures_by_reason
    from total
    returning id
)
select t.due, t.instances, t.hours, t.amount, t.debts, t.failures, t.suspended, t.failures_by_reason,
    (select count(*) filter (where written) from advanced) = (select count(billed_until) from instance)
        and (select count(*) filter (where exact) from wallet_charged) = t.wallets
        and (select count(*) from batch_recorded) = 1 as consistent,
    coalesce((select jsonb_agg(jsonb_build_object('vps_instance_id', instance_id, 'label', label, 'last_billed_at', last_billed_at,
        'ledger_end', billed_until)) from (select * from instance where rewound order by instance_id limit 20) r), '[]') as rewound
from total t
