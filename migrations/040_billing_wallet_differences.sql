-- Wallets that differ from their transactions, and what operators did about them. The application writes wallets as absolute
-- values, so a top-up can overwrite a debit. That is never a violation of the controller's; it is reported apart.

-- Each charge leaves the wallet's balance here. If the next charge finds the same balance, no other program has changed the
-- wallet. If not, changed_at is set, and the wallet is compared with its transactions after the cycle.
alter table billing_wallet_baselines
    add column if not exists left_balance numeric,
    add column if not exists changed_at timestamptz,
    add column if not exists checked_at timestamptz,
    add column if not exists checked_completed numeric,
    set (fillfactor = 70);  -- each charge updates the row in place
comment on column billing_wallet_baselines.left_balance is 'the balance as the controller''s last charge left it; null before the first';
comment on column billing_wallet_baselines.changed_at is 'when a charge found another balance; null once the wallet has been compared';
comment on column billing_wallet_baselines.checked_at is 'when the wallet last equalled baseline and transactions';
comment on column billing_wallet_baselines.checked_completed is 'the sum of the completed transactions at checked_at';
create index if not exists billing_changed_wallets on billing_wallet_baselines (changed_at) where changed_at is not null;

-- Wallets whose last comparison found a difference.
create table if not exists billing_wallet_differences (
    wallet_id uuid primary key,
    organization_id uuid not null,
    difference numeric not null,
    explanation jsonb not null,
    found_at timestamptz not null default clock_timestamp(),
    compared_at timestamptz not null default clock_timestamp()
);
comment on column billing_wallet_differences.difference is 'what the wallet holds beyond baseline and completed transactions';
comment on column billing_wallet_differences.explanation is 'the amounts that make up the difference, by kind';

-- What operators did about a difference, with `reconcile`.
create table if not exists billing_corrections (
    id bigint generated always as identity primary key,
    made_at timestamptz not null default clock_timestamp(),
    made_by text not null,
    reason text not null,
    kind text not null check (kind in ('correct', 'accept')),
    organization_id uuid not null,
    wallet_id uuid not null,
    difference numeric not null,
    amount numeric not null,
    explanation jsonb not null
);
create index if not exists billing_corrections_organization on billing_corrections (organization_id, made_at);
comment on column billing_corrections.kind is 'correct: the wallet moved by amount; accept: the baseline moved by amount';
comment on column billing_corrections.difference is 'before the correction';

-- A number in a payment's metadata, which the application writes as a number or as text; null if it is neither.
create or replace function billing_metadata_number(metadata jsonb, key text) returns numeric
language sql immutable parallel safe as
$$
    select case when jsonb_typeof(metadata -> key) in ('number', 'string') and metadata ->> key ~ '^-?\d{1,20}(\.\d{1,20})?$'
        then (metadata ->> key)::numeric end
$$;

-- Amounts that could explain a difference, from the payments changed since a moment:
-- overwritten_debit: the application wrote a balance that it had read before our debit, so two payments begin at one balance.
-- overwritten_credit: two payments of the application begin at one balance, so the later one overwrote the earlier one.
-- in_flight: a top-up younger than 15 minutes is completed and not yet in the wallet, or in the wallet and not yet completed.
-- half_cents: balances in the application's payments that differ from their amount by at most a cent.
create or replace function billing_difference_candidates(of_organization uuid, since timestamptz)
returns table (kind text, amount numeric)
language sql stable as
$$
    with payment as materialized (
        select t.id, t.amount, t.status, billing_is_ours(t.metadata) as ours,
            case when billing_is_ours(t.metadata) then t.created_at else coalesce(t.updated_at, t.created_at) end as moment,
            billing_metadata_number(t.metadata, 'balance_before') as before,
            billing_metadata_number(t.metadata, 'balance_after') as after
        from payment_transactions t
        where t.organization_id = of_organization and (t.metadata ->> 'wallet_type') is null and abs(t.amount) < 'infinity'
            and greatest(t.created_at, t.updated_at) >= since - interval '2 hours'
    ), debit as (
        -- a chain ends where another program has changed the wallet between two debits
        select *, count(*) filter (where begins) over (order by moment, id) as chain
        from (
            select *, before is distinct from lag(after) over (order by moment, id) as begins
            from payment where ours
        ) marked
    ), chained as (
        select *, first_value(before) over w as chain_before, first_value(moment) over w as chain_since, last_value(after) over w as chain_after
        from debit
        window w as (partition by chain order by moment, id rows between unbounded preceding and unbounded following)
    )
    select 'overwritten_debit', sum(lost.amount)
    from payment p
    cross join lateral (
        select d.before - d.chain_after as amount
        from chained d
        where d.before = p.before and abs(extract(epoch from d.moment - p.moment)) < 3600
            -- unless the chain begins with what the payment left
            and not (d.chain_before = p.after and p.moment <= d.chain_since)
        order by abs(extract(epoch from d.moment - p.moment))
        limit 1
    ) lost
    where not p.ours and p.status = 'completed'
    union all
    select 'overwritten_credit', -sum(p.after - p.before)
    from payment p
    where not p.ours and p.status = 'completed' and p.after <> p.before and exists (
        select from payment later
        where not later.ours and later.status = 'completed' and later.before = p.before
            and (later.moment, later.id) > (p.moment, p.id) and later.moment < p.moment + interval '15 minutes')
    union all
    select 'in_flight', -sum(p.amount)
    from payment p
    where not p.ours and p.status = 'completed' and p.amount > 0 and p.after is null and p.moment > now() - interval '15 minutes'
    union all
    select 'in_flight', sum(p.amount)
    from payment p
    where not p.ours and p.status = 'pending' and p.amount > 0 and p.moment > now() - interval '15 minutes'
    union all
    select 'half_cents', sum(p.after - p.before - p.amount)
    from payment p
    where not p.ours and p.status = 'completed' and abs(p.after - p.before - p.amount) <= 0.01
$$;

-- What makes up a difference: the candidates that together come nearest to it, and the rest as unexplained. A rest of at most a
-- cent is rounding. Amounts are text, because JSON readers turn numbers into floats.
create or replace function billing_explain_difference(difference numeric, kinds text[], amounts numeric[]) returns jsonb
language sql immutable parallel safe as
$$
    select coalesce((
        select jsonb_object_agg(part.kind, part.amount::text) from (
            select p.kind, sum(p.amount) as amount
            from (
                select kinds[n] as kind, amounts[n] as amount from generate_subscripts(kinds, 1) n where best.chosen & (1 << n) > 0
                union all
                select case when abs(best.rest) <= 0.01 then 'half_cents' else 'unexplained' end, best.rest where best.rest <> 0
            ) p
            group by p.kind
        ) part
        where part.amount <> 0), '{}')
    from (
        select chosen.mask as chosen, difference - chosen.explained as rest
        from (
            select mask, coalesce((
                select sum(amounts[n]) from generate_subscripts(kinds, 1) n where mask & (1 << n) > 0), 0) as explained,
                (select count(*) from generate_subscripts(kinds, 1) n where mask & (1 << n) > 0) as parts
            from generate_series(0, (2 << cardinality(kinds)) - 2, 2) mask
        ) chosen
        order by abs(difference - chosen.explained), chosen.parts
        limit 1
    ) best
$$;

-- Compares the wallet of one organization with its baseline and completed transactions; no row unless the organization exists.
-- difference is what the wallet holds beyond them. It is null, with a reason, if there is nothing to compare. `unsettled` says
-- why the difference may still change by itself. Transactions of other wallets never count. deleted_rows: since the last clean
-- comparison, completed transactions have disappeared.
create or replace function billing_wallet_comparison(of_organization uuid)
returns table (
    organization_id uuid, wallet_id uuid, balance numeric, currency text, left_balance numeric, adopted_at timestamptz,
    baseline numeric, completed numeric, other_wallets numeric, expected numeric, difference numeric, not_compared text,
    explanation jsonb, unsettled text, compared_at timestamptz
)
language sql stable as
$$
    select o.id, w.id, w.balance, w.currency, b.left_balance, b.adopted_at, b.baseline, paid.completed, paid.other_wallets,
        b.baseline + paid.completed, found.difference,
        case
            when coalesce(w.wallets, 0) = 0 then 'wallet_missing'
            when w.wallets > 1 then 'wallet_duplicate'
            when w.balance is null then 'balance_null'
            when w.balance = 'NaN' then 'balance_nan'
            when abs(w.balance) = 'infinity' then 'balance_infinite'
            when b.wallet_id is null then 'not_adopted'
        end,
        case when found.difference <> 0 then (
            select billing_explain_difference(found.difference, coalesce(array_agg(c.kind), '{}'), coalesce(array_agg(c.amount), '{}'))
            from (
                select k.kind, k.amount
                from billing_difference_candidates(o.id, greatest(b.adopted_at, b.checked_at, corrected.made_at)) k
                where k.amount <> 0
                union all
                select 'deleted_rows', b.checked_completed - paid.completed_then
                where not paid.changed_since and paid.completed_then <> b.checked_completed
            ) c) end,
        case
            when paid.unbooked then 'a top-up that was completed less than 15 minutes ago has no balance_after yet'
            when paid.changed_now then 'a payment has changed in the last 60 seconds'
        end,
        now()
    from organizations o
    left join (
        select x.organization_id, count(*) as wallets, (array_agg(x.id))[1] as id, min(x.balance) as balance, min(x.currency::text) as currency
        from wallets x where x.organization_id = of_organization group by x.organization_id
    ) w on true
    left join billing_wallet_baselines b on b.wallet_id = w.id and w.wallets = 1
    left join lateral (
        select max(c.made_at) as made_at from billing_corrections c where c.organization_id = o.id
    ) corrected on true
    cross join lateral (
        select coalesce(sum(t.amount) filter (where f.of_wallet), 0) as completed,
            coalesce(sum(t.amount) filter (where f.of_wallet and (t.created_at > b.checked_at) is not true), 0) as completed_then,
            coalesce(bool_or((t.created_at > b.checked_at) is not true and t.updated_at > b.checked_at), false) as changed_since,
            coalesce(sum(t.amount) filter (where t.status = 'completed' and abs(t.amount) < 'infinity' and not f.of_wallet), 0) as other_wallets,
            coalesce(bool_or(f.of_wallet and t.amount > 0 and not billing_is_ours(t.metadata) and f.age < interval '15 minutes'
                and billing_metadata_number(t.metadata, 'balance_after') is null), false) as unbooked,
            coalesce(bool_or(f.age < interval '60 seconds'), false) as changed_now
        from payment_transactions t
        cross join lateral (
            select billing_is_of_wallet(t.status, t.amount, t.metadata) as of_wallet, now() - greatest(t.created_at, t.updated_at) as age
        ) f
        where t.organization_id = of_organization
    ) paid
    cross join lateral (
        select case when abs(w.balance) < 'infinity' then w.balance - (b.baseline + paid.completed) end as difference
    ) found
    where o.id = of_organization
$$;

-- The sum of the differences that operators have accepted since a moment.
create or replace function billing_accepted_since(of_organization uuid, since timestamptz) returns numeric
language sql stable as
$$
    select coalesce(sum(c.amount), 0) from billing_corrections c
    where c.organization_id = of_organization and c.kind = 'accept' and c.made_at >= since
$$;

-- The corrections in a statement, with the columns of billing_statement. An accepted difference has its amount. A corrected one
-- has none, because the wallet returned to what the other lines add up to.
create or replace function billing_statement_corrections(of_organization uuid, from_time timestamptz, to_time timestamptz)
returns table (
    kind text, booked_at timestamptz, instance_id uuid, label text, starts_at timestamptz, ends_at timestamptz, hours bigint,
    monthly_price numeric, amount numeric, bookings bigint, description text
)
language sql stable as
$$
    select 'correction', c.made_at, null::uuid, null::text, null::timestamptz, null::timestamptz, null::bigint, null::numeric,
        case when c.kind = 'accept' then c.amount else 0.00 end, 1::bigint,
        case when c.kind = 'accept' then 'difference accepted: ' else 'wallet corrected by ' || c.amount || ': ' end
            || c.reason
    from billing_corrections c
    where c.organization_id = of_organization and c.made_at >= from_time and c.made_at < to_time
    order by c.made_at, c.id
$$;

-- Balances of before this migration are as the controller left them, unless the audit finds otherwise.
update billing_wallet_baselines b set left_balance = w.balance
from wallets w
where w.id = b.wallet_id and b.left_balance is null and abs(w.balance) < 'infinity'
    and not exists (select from billing_schema_migrations where name = '040_billing_wallet_differences');

insert into billing_schema_migrations (name) values ('040_billing_wallet_differences') on conflict do nothing;
