-- Statements of an organization, by the payments' created_at. from_time is included, to_time is not. Lines are in order of
-- time.

-- The balances of a statement. The opening and closing balance follow from what the wallet held beyond its completed
-- transactions at adoption. Before adoption they are derived, because no one recorded what the wallet held then. difference is
-- the amount by which the wallet now differs from its transactions; statements add up if it is 0. All are null unless there is
-- exactly one wallet with a finite balance.
create or replace function billing_statement_balance(of_organization uuid, from_time timestamptz, to_time timestamptz)
returns table (
    opening numeric, credits numeric, debits numeric, closing numeric, currency text, balance_now numeric, expected_now numeric,
    difference numeric, adopted_at timestamptz, derived boolean
)
language sql stable as
$$
    select first.balance + paid.earlier, paid.credits, paid.debits, first.balance + paid.earlier + paid.credits + paid.debits,
        wallet.currency, wallet.balance, first.balance + paid.total, wallet.balance - (first.balance + paid.total),
        b.adopted_at, coalesce(from_time < b.adopted_at, true)
    from (
        select coalesce(sum(t.amount), 0) as total,
            coalesce(sum(t.amount) filter (where t.created_at is null or t.created_at < from_time), 0) as earlier,
            coalesce(sum(t.amount) filter (where t.created_at >= from_time and t.created_at < to_time and t.amount > 0), 0) as credits,
            coalesce(sum(t.amount) filter (where t.created_at >= from_time and t.created_at < to_time and t.amount < 0), 0) as debits
        from payment_transactions t
        where t.organization_id = of_organization and billing_is_of_wallet(t.status, t.amount, t.metadata)
    ) paid
    left join (
        select (array_agg(w.id))[1] as id, min(w.balance) as balance, min(w.currency::text) as currency
        from wallets w where w.organization_id = of_organization
        having count(*) = 1 and abs(min(w.balance)) < 'infinity'
    ) wallet on true
    left join billing_wallet_baselines b on b.wallet_id = wallet.id
    cross join lateral (select coalesce(b.baseline, wallet.balance - paid.total) as balance) first
$$;

-- The lines of a statement: top_up, charge, waiver and debit. Consecutive charges of one instance at one price are one line, so
-- billing_charge(monthly_price, starts_at, hours) gives its amount again. A charge whose period was deleted with its instance
-- has no period and no price. A debit is a payment that another program took.
create or replace function billing_statement(of_organization uuid, from_time timestamptz, to_time timestamptz)
returns table (
    kind text, booked_at timestamptz, instance_id uuid, label text, starts_at timestamptz, ends_at timestamptz, hours bigint,
    monthly_price numeric, amount numeric, bookings bigint, description text
)
language sql stable as
$$
    with payment as materialized (
        select t.id, t.created_at, t.amount, t.description, t.metadata, billing_is_ours(t.metadata) as ours
        from payment_transactions t
        where t.organization_id = of_organization and billing_is_of_wallet(t.status, t.amount, t.metadata)
            and t.created_at >= from_time and t.created_at < to_time
    ), booking as (
        select case when p.ours then 'charge' when p.amount > 0 then 'top_up' else 'debit' end as kind, p.created_at, p.amount,
            coalesce(c.vps_instance_id::text, case when p.ours then p.metadata ->> 'vps_instance_id' end) as instance_id,
            c.billing_period_start as starts_at, c.billing_period_end as ends_at, coalesce(c.metadata, p.metadata) as metadata,
            case when not p.ours or c.id is null then p.description end as description, p.id
        from payment p
        left join vps_billing_cycles c on p.ours and c.payment_transaction_id = p.id
        union all
        -- hours that cost nothing have no payment
        select case when c.metadata ? 'waived' then 'waiver' else 'charge' end, c.created_at, 0.00, c.vps_instance_id::text,
            c.billing_period_start, c.billing_period_end, c.metadata, null, c.id
        from vps_billing_cycles c
        where c.organization_id = of_organization and c.status = 'billed' and billing_is_ours(c.metadata)
            and c.payment_transaction_id is null and c.created_at >= from_time and c.created_at < to_time
    ), priced as (
        select b.*, case when jsonb_typeof(b.metadata -> 'monthly_price') = 'number' and b.starts_at is not null
                then (b.metadata ->> 'monthly_price')::numeric end as monthly_price,
            case when jsonb_typeof(b.metadata -> 'hours') = 'number' and b.kind <> 'debit' then (b.metadata ->> 'hours')::bigint end as hours
        from booking b
    ), marked as (
        select p.*, p.starts_at is not distinct from lag(p.ends_at) over same and p.starts_at is not null as continues
        from priced p
        window same as (partition by p.kind, p.instance_id, p.monthly_price order by p.starts_at, p.id)
    ), numbered as (
        select m.*, case when m.starts_at is null then 0 else count(*) filter (where not m.continues) over (
            partition by m.kind, m.instance_id, m.monthly_price order by m.starts_at, m.id) end as number
        from marked m
    ), line as (
        select n.kind, min(n.created_at) as booked_at, n.instance_id, min(n.starts_at) as starts_at, max(n.ends_at) as ends_at,
            sum(n.hours)::bigint as hours, n.monthly_price, sum(n.amount) as amount, count(*) as bookings,
            min(n.description) as description, min(n.metadata ->> 'vps_label') as old_label
        from numbered n
        group by n.kind, n.instance_id, n.monthly_price, n.number, case when n.kind in ('top_up', 'debit') then n.id end
    )
    select l.kind, l.booked_at, i.id, coalesce(i.label, l.old_label, l.instance_id), l.starts_at, l.ends_at, l.hours,
        l.monthly_price, l.amount, l.bookings, l.description
    from line l
    left join vps_instances i on i.id::text = l.instance_id and i.organization_id = of_organization
    order by l.kind <> 'top_up', l.kind, coalesce(i.label, l.old_label, l.instance_id), l.starts_at, l.booked_at
$$;

insert into billing_schema_migrations (name) values ('036_billing_statements') on conflict do nothing;
