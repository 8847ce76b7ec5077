-- How long wallets last, what a run could not charge, and names for ids.

-- An estimate of how long a wallet pays for its organization's present instances at present prices: hours_left is the balance
-- over the sum of the monthly prices / 730. It is null if nothing costs anything, or if there is no usable wallet.
create or replace function billing_runway(of_organization uuid, default_monthly_price numeric)
returns table (
    organization_id uuid, organization text, slug text, instances bigint, monthly_price numeric, balance numeric, hours_left numeric
)
language sql stable as
$$
    select o.id, o.name, o.slug, used.instances, used.monthly_price, wallet.balance,
        case when used.monthly_price > 0 and wallet.balance is not null then round(greatest(wallet.balance, 0) * 730 / used.monthly_price, 1) end
    from (
        select i.organization_id, count(*) as instances,
            sum(case when billing_is_price(coalesce(p.monthly_price, default_monthly_price))
                then coalesce(p.monthly_price, default_monthly_price) else 0 end) as monthly_price
        from vps_instances i
        left join (
            select h.key, h.monthly_price from billing_price_history() h where h.valid_from <= now() and h.valid_to > now()
        ) p on p.key = i.plan_id
        where of_organization is null or i.organization_id = of_organization
        group by i.organization_id
    ) used
    join organizations o on o.id = used.organization_id
    left join (
        select w.organization_id, min(w.balance) as balance
        from wallets w
        where of_organization is null or w.organization_id = of_organization
        group by w.organization_id
        having count(*) = 1 and abs(min(w.balance)) < 'infinity'
    ) wallet on wallet.organization_id = o.id
    order by 7 nulls last, o.slug
$$;

-- Instances that a run could not charge for a reason other than the balance, according to their open rows. A later run takes
-- over these rows, so the list is complete only for the newest run. billing_runs counts the failures of every run.
create or replace function billing_run_failures(of_run bigint)
returns table (
    organization_id uuid, slug text, instance_id uuid, label text, reason text, since timestamptz, hours bigint, error text
)
language sql stable as
$$
    select c.organization_id, min(o.slug), c.vps_instance_id, min(i.label), min(c.metadata ->> 'reason'),
        min(c.billing_period_start), sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint,
        min(c.metadata ->> 'error')
    from vps_billing_cycles c
    join vps_instances i on i.id = c.vps_instance_id
    join organizations o on o.id = c.organization_id
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'run' = of_run::text
        and c.metadata ->> 'reason' <> 'insufficient_balance'
    group by c.organization_id, c.vps_instance_id
    order by 5, 2, 4, 3
$$;

-- What ids of organizations, wallets, instances, billing cycles and payments belong to.
create or replace function billing_names(ids uuid[]) returns table (id uuid, name text)
language sql stable as
$$
    select o.id, o.slug::text from organizations o where o.id = any (ids)
    union all
    select w.id, o.slug from wallets w join organizations o on o.id = w.organization_id where w.id = any (ids)
    union all
    select i.id, coalesce(i.label || ' of ', '') || o.slug
    from vps_instances i join organizations o on o.id = i.organization_id where i.id = any (ids)
    union all
    select c.id, coalesce(i.label || ' of ', '') || o.slug
    from vps_billing_cycles c
    join vps_instances i on i.id = c.vps_instance_id
    join organizations o on o.id = c.organization_id
    where c.id = any (ids)
    union all
    select t.id, o.slug from payment_transactions t join organizations o on o.id = t.organization_id
    where t.id = any (ids) and not exists (select from vps_billing_cycles c where c.id = t.id)
$$;

insert into billing_schema_migrations (name) values ('037_billing_outlooks') on conflict do nothing;
