-- Answers about customers: who owes what, why an instance was not charged, and what the next cycle will do. Each function reads
-- one organization by index. Names are only for people to read: nothing here decides what is charged.

-- Organizations and instances that a name may refer to: by id, else by slug, else by label or the provider's id. Labels have no
-- index, so the last step reads all instances once.
create or replace function billing_find(wanted text)
returns table (kind text, organization_id uuid, organization text, slug text, instance_id uuid, label text)
language plpgsql stable as
$$
#variable_conflict use_column
begin
    if wanted ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then
        return query
        select 'organization', o.id, o.name::text, o.slug::text, null::uuid, null::text
        from organizations o where o.id = wanted::uuid
        union all
        select 'instance', o.id, o.name::text, o.slug::text, i.id, i.label::text
        from vps_instances i left join organizations o on o.id = i.organization_id where i.id = wanted::uuid;
        return;
    end if;
    return query
    select 'organization', o.id, o.name::text, o.slug::text, null::uuid, null::text from organizations o where o.slug = wanted;
    if found then
        return;
    end if;
    return query
    select 'instance', o.id, o.name::text, o.slug::text, i.id, i.label::text
    from vps_instances i left join organizations o on o.id = i.organization_id
    where i.label = wanted or i.provider_instance_id::text = wanted
    order by i.created_at, i.id;
end
$$;

-- Debts by instance, the oldest first. next_hour is the price of the oldest hour owed; pays_next_hour says whether the wallet
-- could pay that hour if it paid nothing else. Without an argument the function reads every open row.
create or replace function billing_instance_debts(of_organization uuid default null)
returns table (
    organization_id uuid, organization text, slug text, instance_id uuid, label text, provider_instance_id text,
    hours bigint, owed numeric, since timestamptz, next_hour numeric, balance numeric, pays_next_hour boolean
)
language sql stable as
$$
    select debt.organization_id, o.name, o.slug, debt.id, debt.label, debt.provider_instance_id, debt.hours, debt.owed,
        debt.since, next.price, wallet.balance, coalesce(wallet.balance >= next.price, false)
    from (
        select i.organization_id, i.id, i.label, i.provider_instance_id::text as provider_instance_id,
            sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            sum(billing_owed(c.metadata, c.total_amount)) as owed, min(c.billing_period_start) as since,
            (array_agg(c.metadata -> 'monthly_price' order by c.billing_period_start))[1] as monthly_price
        from vps_billing_cycles c
        join vps_instances i on i.id = c.vps_instance_id
        where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' = 'insufficient_balance'
            and (of_organization is null or i.organization_id = of_organization)
        group by i.id
    ) debt
    join organizations o on o.id = debt.organization_id
    cross join lateral (
        select case when jsonb_typeof(debt.monthly_price) = 'number'
            then billing_charge((debt.monthly_price #>> '{}')::numeric, debt.since, 1) end as price
    ) next
    left join lateral (
        select min(w.balance) as balance from wallets w where w.organization_id = debt.organization_id having count(*) = 1
    ) wallet on true
    order by debt.since, debt.organization_id, debt.id
$$;
create or replace view billing_instance_debts as select * from billing_instance_debts();

-- The wallet and the suspension of one organization. balance is null unless there is exactly one wallet.
create or replace function billing_organization(of_organization uuid)
returns table (
    organization_id uuid, organization text, slug text, wallets bigint, balance numeric, currency text,
    suspended text, suspended_detail text, suspended_at timestamptz, instances bigint
)
language sql stable as
$$
    select o.id, o.name, o.slug, wallet.wallets, wallet.balance, wallet.currency, s.reason, s.detail, s.suspended_at,
        (select count(*) from vps_instances i where i.organization_id = o.id)
    from organizations o
    cross join lateral (
        select count(*) as wallets, case when count(*) = 1 then min(w.balance) end as balance,
            case when count(*) = 1 then min(w.currency::text) end as currency
        from wallets w where w.organization_id = o.id
    ) wallet
    left join billing_suspensions s on s.organization_id = o.id
    where o.id = of_organization
$$;

-- The instances of one organization: the time until which each is billed, its present price and the time since which that
-- applies (null: since before the first recorded price), its last charge, and its open rows.
create or replace function billing_instances(of_organization uuid, default_monthly_price numeric)
returns table (
    instance_id uuid, label text, provider_instance_id text, plan_id text, billed_until timestamptz,
    monthly_price numeric, price_source text, price_since timestamptz,
    charged_from timestamptz, charged_until timestamptz, charged_hours bigint, charged_price numeric, charged_amount numeric,
    charged_run bigint, open_reason text, open_since timestamptz, open_hours bigint, open_error text
)
language sql stable as
$$
    select i.id, i.label, i.provider_instance_id::text, i.plan_id, case when billing_is_moment(position.starts_at) then position.starts_at end,
        coalesce(price.monthly_price, default_monthly_price),
        case when price.monthly_price is null and default_monthly_price is not null then 'default' else coalesce(price.source, 'none') end,
        nullif(price.valid_from, '-infinity'), charge.billing_period_start, charge.billing_period_end, charge.hours, charge.monthly_price,
        charge.total_amount, charge.run, open.reason, open.since, open.hours, open.error
    from vps_instances i
    cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) position
    left join billing_price_history() price on price.key = i.plan_id and price.valid_from <= now() and price.valid_to > now()
    left join lateral (
        select c.billing_period_start, c.billing_period_end, c.total_amount,
            billing_whole_hours(c.billing_period_start, c.billing_period_end) as hours,
            case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number' then (c.metadata ->> 'monthly_price')::numeric end
                as monthly_price,
            case when jsonb_typeof(c.metadata -> 'run') = 'number' then (c.metadata ->> 'run')::bigint end as run
        from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status in ('billed', 'refunded') and billing_is_ours(c.metadata)
        order by c.billing_period_start desc
        limit 1
    ) charge on true
    cross join lateral (
        select min(c.metadata ->> 'reason') as reason, min(c.billing_period_start) as since,
            sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            min(c.metadata ->> 'error') as error
        from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata)
    ) open
    where i.organization_id = of_organization
    order by coalesce(i.created_at, 'infinity'), i.id
$$;

-- What a cycle at as_of would do with one organization: the segments of its due instances in charging order, what each costs,
-- why it can't be charged, and the hours that the wallet can pay. It calls the same functions as charging does.
create or replace function billing_outlook(
    of_organization uuid, as_of timestamptz, default_monthly_price numeric, wanted_currency text
)
returns table (
    instance_id uuid, starts_at timestamptz, hours bigint, monthly_price numeric, price_source text, recorded boolean,
    cost numeric, failure_reason text, paid_hours bigint, amount numeric
)
language sql stable as
$$
    with due as materialized (
        select i.id, coalesce(i.created_at, 'infinity') as created_at
        from vps_instances i
        where i.organization_id = of_organization and billing_due(i.last_billed_at, i.created_at, as_of)
    ), segment as materialized (
        select due.created_at, s.*, o.balance,
            min(billing_failure_reason(o.suspended, nullif(o.wallets, 0), o.balance, o.currency, wanted_currency, s.start_known,
                s.hours, s.monthly_price)) over (partition by s.instance_id) as failure_reason
        from billing_segments(array(select due.id from due), as_of, default_monthly_price) s
        join due on due.id = s.instance_id
        cross join billing_organization(of_organization) o
    ), allotted as (
        select a.instance_id, a.starts_at, a.paid_hours
        from (
            select array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at) as ids,
                array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at) as starts,
                billing_affordable_segments(min(s.balance),
                    array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.monthly_price order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.hours order by s.created_at, s.instance_id, s.starts_at)) as affordable
            from segment s
            where s.failure_reason is null
        ) payable
        cross join lateral unnest(payable.ids, payable.starts, payable.affordable) as a (instance_id, starts_at, paid_hours)
    )
    select s.instance_id, s.starts_at, s.hours, s.monthly_price, s.price_source, s.row_id is not null,
        case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) end,
        s.failure_reason, coalesce(a.paid_hours, 0),
        case when a.paid_hours > 0 then billing_charge(s.monthly_price, s.starts_at, a.paid_hours) else 0.00 end
    from segment s
    left join allotted a on a.instance_id = s.instance_id and a.starts_at = s.starts_at
    order by s.created_at, s.instance_id, s.starts_at
$$;

insert into billing_schema_migrations (name) values ('034_billing_answers') on conflict do nothing;
