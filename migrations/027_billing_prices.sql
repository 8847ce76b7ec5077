-- The price history, and the calculations that read it. An hour costs what it cost when it began.

-- The recorded results of plan lookup, for each text that vps_instances.plan_id may hold. monthly_price is null where the
-- lookup found no price.
create table if not exists billing_prices (
    key text not null,
    valid_from timestamptz not null,
    monthly_price numeric,
    source text not null,
    recorded_at timestamptz not null default now(),
    primary key (key, valid_from)
);
comment on column billing_prices.source is 'plan: vps_plans.id matched; provider_plan: provider_plan_id matched; none: nothing matched';

-- When plan prices were last recorded. Empty until the first cycle.
create table if not exists billing_price_check (
    only_row boolean primary key default true check (only_row),
    checked_at timestamptz not null
);

-- True if a price can be charged.
create or replace function billing_is_price(monthly_price numeric) returns boolean
language sql immutable parallel safe as
$$ select coalesce(monthly_price >= 0 and monthly_price < 'infinity', false) $$;

-- True if a payment has changed the wallet that is charged. Later versions of the application have other wallets, which the
-- metadata names. A NaN or infinite amount would spoil every sum. Migration 015 applies the same rule.
create or replace function billing_is_of_wallet(status text, amount numeric, metadata jsonb) returns boolean
language sql immutable parallel safe as
$$ select status = 'completed' and abs(amount) < 'infinity' and (metadata ->> 'wallet_type') is null $$;

-- Functions that earlier versions of 014 and 016 created.
drop function if exists billing_is_due(timestamptz, timestamptz, timestamptz);
drop function if exists billing_affordable_hours(numeric, numeric[], timestamptz[], bigint[]);
drop function if exists billing_plan_prices();

-- Plan lookup as of now: the plan's id first, else its provider_plan_id. Among several matches the active plan wins, then
-- the oldest.
create or replace function billing_plan_lookup()
returns table (key text, monthly_price numeric, source text, updated_at timestamptz)
language sql stable parallel safe as
$$
    select distinct on (candidate.key) candidate.key, candidate.base_price + coalesce(candidate.markup_price, 0),
        candidate.source, candidate.updated_at
    from (
        select p.id::text as key, 'plan' as source, 1 as preference,
            p.base_price, p.markup_price, p.active, p.created_at, p.updated_at, p.id
        from vps_plans p
        union all
        select p.provider_plan_id, 'provider_plan', 2,
            p.base_price, p.markup_price, p.active, p.created_at, p.updated_at, p.id
        from vps_plans p
    ) candidate
    where candidate.key is not null
    order by candidate.key, candidate.preference, candidate.active desc nulls last, candidate.created_at, candidate.id
$$;

-- Changes of plan lookup that are not recorded yet. The first record of a key applies to all earlier hours too. A later change
-- applies from the plan's updated_at if that lies after the previous check, else from now.
create or replace function billing_price_changes()
returns table (key text, valid_from timestamptz, monthly_price numeric, source text)
language sql stable parallel safe as
$$
    with recorded as (
        select distinct on (b.key) b.key, b.monthly_price, b.source from billing_prices b order by b.key, b.valid_from desc
    )
    select coalesce(p.key, r.key),
        case
            when r.key is null then '-infinity'
            when p.updated_at > k.checked_at and p.updated_at <= now() then p.updated_at
            else now()
        end,
        p.monthly_price, coalesce(p.source, 'none')
    from (select max(c.checked_at) as checked_at from billing_price_check c) k
    cross join (billing_plan_lookup() p full join recorded r on r.key = p.key)
    where r.key is null or p.monthly_price is distinct from r.monthly_price or coalesce(p.source, 'none') <> r.source
$$;

-- The price of each key over time, including changes that are not recorded yet. Everything that needs a price reads this.
-- next_price is the first later price that can be charged: an hour whose own price can't be charged takes it.
create or replace function billing_price_history()
returns table (
    key text, monthly_price numeric, source text, valid_from timestamptz, valid_to timestamptz, next_price numeric
)
language sql stable parallel safe as
$$
    select h.key, h.monthly_price, h.source, h.valid_from,
        lead(h.valid_from, 1, 'infinity') over (partition by h.key order by h.valid_from),
        (array_agg(h.monthly_price) filter (where billing_is_price(h.monthly_price)) over (
            partition by h.key order by h.valid_from rows between 1 following and unbounded following))[1]
    from (
        select b.key, b.monthly_price, b.source, b.valid_from from billing_prices b
        union all
        select c.key, c.monthly_price, c.source, c.valid_from from billing_price_changes() c
    ) h
$$;

-- True if at least one whole hour is unbilled. An instance without a usable start counts as due, so that it is reported:
-- no start at all, or one at infinity. The disjunction lets an index on last_billed_at serve it.
create or replace function billing_due(last_billed_at timestamptz, created_at timestamptz, as_of timestamptz)
returns boolean
language sql stable parallel safe as
$$
    select last_billed_at <= as_of - interval '1 hour'
        or last_billed_at = 'infinity'
        or (last_billed_at is null
            and (created_at is null or created_at = 'infinity' or created_at <= as_of - interval '1 hour'))
$$;

-- The time until which an instance is billed: the end of the last period in the controller's own ledger, or last_billed_at,
-- whichever is later; the creation time if there is neither. It takes one index probe.
create or replace function billing_position(instance_id uuid, last_billed_at timestamptz, created_at timestamptz)
returns table (starts_at timestamptz, ledger_end timestamptz)
language sql stable parallel safe as
$$
    select greatest(coalesce(last_billed_at, created_at), ledger.period_end), ledger.period_end
    from (select) as always
    left join lateral (
        select c.billing_period_end as period_end
        from vps_billing_cycles c
        where c.vps_instance_id = instance_id and c.status in ('billed', 'refunded') and billing_is_ours(c.metadata)
        order by c.billing_period_start desc
        limit 1
    ) ledger on true
$$;

-- True if a gap before a billed period that begins at `starts_at` is legitimate. It is if the metadata says that last_billed_at
-- was there when the period was charged, if another program has billed the hours, or if their period may have been deleted with
-- its organization.
create or replace function billing_is_lawful_gap(instance_id uuid, starts_at timestamptz, metadata jsonb) returns boolean
language sql stable parallel safe as
$$
    select metadata ? 'moved_forward'
        or exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.billing_period_end = starts_at and c.status in ('billed', 'refunded')
                and not billing_is_ours(c.metadata))
        or exists (
            select from billing_wallet_baselines b
            where not exists (select from organizations o where o.id = b.organization_id))
$$;

-- Wallets that the fast path may charge: adopted, in the right currency, with a finite balance, and the only wallet of an
-- organization that is not suspended.
create or replace function billing_sound_wallets(wanted_currency text)
returns table (organization_id uuid, wallet_id uuid, balance numeric)
language sql stable parallel safe as
$$
    select w.organization_id, w.id, w.balance
    from wallets w
    where w.balance < 'infinity' and upper(w.currency) = wanted_currency
        and exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
        and not exists (select from wallets other where other.organization_id = w.organization_id and other.id <> w.id)
        and not exists (select from billing_suspensions s where s.organization_id = w.organization_id)
$$;

-- Hours are counted from `since`. Returns the number of the first hour that does not begin before `moment`.
create or replace function billing_hours_until(since timestamptz, moment timestamptz) returns bigint
language sql immutable parallel safe as
$$
    select case
        when moment <= since then 0
        when moment = 'infinity' then 9223372036854775807
        else ceil(extract(epoch from moment - since) / 3600)::bigint
    end
$$;

-- Returns how many hours of each segment a wallet can pay. Segments come in charging order, those of an instance one after the
-- other. Each gets as many of its oldest hours as the remaining balance can pay. If a segment can't be paid in full, the later
-- segments of its instance get none. Solves for the greatest k with F(start + k hours) <= F(start) + remaining instead of
-- searching for it.
create or replace function billing_affordable_segments(
    balance numeric, instance_ids uuid[], monthly_prices numeric[], period_starts timestamptz[], hours bigint[]
) returns bigint[]
language plpgsql immutable parallel safe as
$$
declare
    remaining numeric := trunc(greatest(balance, 0), 2);  -- charges are whole cents; a balance may hold fractions of one
    affordable bigint[] := '{}';
    short uuid;
    segment record;
    cost numeric;
    paid bigint;
    a_month constant numeric := 2628000000000;  -- microseconds
    bound numeric;
    step numeric;
begin
    for segment in
        select * from unnest(instance_ids, monthly_prices, period_starts, hours) as s (instance_id, monthly_price, period_start, hours)
    loop
        paid := case when segment.instance_id = short then 0 else segment.hours end;
        cost := billing_charge(segment.monthly_price, segment.period_start, paid);
        if cost > remaining then
            bound := 2 * a_month * (100 * (billing_price_clock(segment.monthly_price, segment.period_start) + remaining) + 1)
                - a_month - 200 * segment.monthly_price * billing_epoch_microseconds(segment.period_start);
            step := 200 * segment.monthly_price * 3600000000;
            paid := greatest(div(bound, step) - (mod(bound, step) = 0)::int, 0);
            cost := billing_charge(segment.monthly_price, segment.period_start, paid);
            short := segment.instance_id;
        end if;
        remaining := remaining - cost;
        affordable := affordable || paid;
    end loop;
    return affordable;
end
$$;

-- What due instances owe as of a moment, in segments of one price each. The first segments are the hours of open rows, at the
-- recorded prices. The others are the hours since, at the prices of the history. Segments are contiguous and in order, and
-- begin at billing_position. So if another program has billed hours of an open row, these are left out. A segment that
-- continues the last open row at the same price keeps its row_id. An hour without a price costs the default price. An hour
-- whose price can't be charged costs the next price that can. If there is no such price, monthly_price is null. An instance
-- whose ledger is ahead of as_of has one segment of 0 hours.
create or replace function billing_segments(instance_ids uuid[], as_of timestamptz, default_monthly_price numeric)
returns table (
    instance_id uuid, starts_at timestamptz, hours bigint, monthly_price numeric, price_source text, row_id uuid, since jsonb,
    start_known boolean, ledger_end timestamptz
)
language plpgsql stable as  -- plpgsql keeps the plan for the session; planning takes longer than running it for a few rows
$$
#variable_conflict use_column
begin
    return query
    with instance as materialized (
        select i.id, i.plan_id, position.ledger_end, billing_is_moment(position.starts_at) as start_known,
            case when billing_is_moment(position.starts_at) then position.starts_at else as_of - interval '1 hour' end as starts_at
        from vps_instances i
        cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) position
        where i.id = any (instance_ids)
    ), standing as materialized (
        select *, greatest(billing_whole_hours(instance.starts_at, as_of), 0) as hours from instance
    ), open_row as materialized (
        select c.id as row_id, s.id, greatest(c.billing_period_start, s.starts_at) as starts_at,
            least(c.billing_period_end, s.starts_at + s.hours * interval '1 hour') as ends_at,
            case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number'
                then (c.metadata ->> 'monthly_price')::numeric end as monthly_price,
            c.metadata ->> 'price_source' as price_source, c.metadata -> 'since' as since
        from standing s
        join vps_billing_cycles c on c.vps_instance_id = s.id and c.status = 'failed' and billing_is_ours(c.metadata)
    ), recorded as materialized (
        -- Open rows that hold a price and time that is still unbilled. If rows overlap, each hour is owed once: the earlier
        -- row ends where the later one begins.
        select * from (
            select r.row_id, r.id, r.starts_at, r.monthly_price, r.price_source, r.since,
                least(r.ends_at, lead(r.starts_at) over (partition by r.id order by r.starts_at, r.ends_at)) as ends_at
            from open_row r
            where billing_is_price(r.monthly_price) and r.ends_at > r.starts_at
        ) cut
        where cut.ends_at > cut.starts_at
    ), gap as (
        select s.id, s.starts_at as from_time, coalesce(min(r.starts_at), 'infinity') as to_time
        from standing s left join recorded r on r.id = s.id
        group by s.id, s.starts_at
        union all
        select r.id, r.ends_at, lead(r.starts_at, 1, 'infinity') over (partition by r.id order by r.starts_at) from recorded r
    ), piece as (
        select r.id, r.row_id, r.monthly_price, r.price_source, r.since, r.starts_at as from_time, r.ends_at as to_time
        from recorded r
        union all
        select g.id, null,
            case when billing_is_price(h.monthly_price) then h.monthly_price
                else coalesce(case when h.monthly_price is null then default_monthly_price end, h.next_price, h.monthly_price) end,
            case when h.monthly_price is null and default_monthly_price is not null then 'default' else h.source end,
            null, greatest(g.from_time, h.valid_from), least(g.to_time, h.valid_to)
        from gap g
        join standing s on s.id = g.id
        left join billing_price_history() h on h.key = s.plan_id and h.valid_from < g.to_time and h.valid_to > g.from_time
        where g.from_time < g.to_time
    ), counted as (
        -- an hour belongs to the piece in which it begins
        select p.*, least(billing_hours_until(s.starts_at, p.from_time), s.hours) as first_hour,
            least(billing_hours_until(s.starts_at, p.to_time), s.hours) as end_hour
        from piece p
        join standing s on s.id = p.id
    ), compared as (
        select c.*, c.row_id is null and lag(c.end_hour) over w is not null
            and c.monthly_price is not distinct from lag(c.monthly_price) over w as continues
        from counted c
        where c.end_hour > c.first_hour
        window w as (partition by c.id order by c.first_hour)
    ), numbered as (
        select c.*, count(*) filter (where not c.continues) over (partition by c.id order by c.first_hour) as number
        from compared c
    )
    select s.id, segment.starts_at, segment.hours, segment.monthly_price, segment.price_source,
        coalesce(segment.row_id, reused.row_id), coalesce(segment.since, reused.since), s.start_known, s.ledger_end
    from (
        select s.id, s.start_known, s.ledger_end, s.starts_at + coalesce(min(n.first_hour), 0) * interval '1 hour' as starts_at,
            coalesce(max(n.end_hour) - min(n.first_hour), 0) as hours,
            (array_agg(n.monthly_price order by n.first_hour))[1] as monthly_price,
            (array_agg(n.price_source order by n.first_hour))[1] as price_source,
            (array_agg(n.row_id order by n.first_hour))[1] as row_id, (array_agg(n.since order by n.first_hour))[1] as since
        from standing s
        left join numbered n on n.id = s.id
        group by s.id, s.starts_at, s.start_known, s.ledger_end, n.number
    ) segment
    join standing s on s.id = segment.id
    -- an open row without a price is used again by the segment that begins where it does
    left join open_row reused on segment.row_id is null and reused.id = segment.id and reused.starts_at = segment.starts_at
        and not billing_is_price(reused.monthly_price);
end
$$;

insert into billing_schema_migrations (name) values ('027_billing_prices') on conflict do nothing;
