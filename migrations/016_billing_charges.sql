-- Faster charges, and the guard's progress.

-- The charge for [period_start, period_start + hours): F(end) - F(start), as in 014. It computes in whole microseconds
-- because adding an interval to a timestamptz is only stable, which would keep the planner from inlining this function.
create or replace function billing_charge(monthly_price numeric, period_start timestamptz, hours bigint) returns numeric
language sql immutable parallel safe as
$$
    select (div(200 * monthly_price * (billing_epoch_microseconds(period_start) + hours * 3600000000) + 2628000000000,
                5256000000000)
          - div(200 * monthly_price * billing_epoch_microseconds(period_start) + 2628000000000, 5256000000000)) * 0.01
$$;

-- The monthly price for each text that vps_instances.plan_id may hold: the plan's id first, else its provider_plan_id. Among
-- several matches the active plan wins, then the oldest. A function rather than a view, because a view would block the
-- application from altering its table.
create or replace function billing_plan_prices() returns table (key text, monthly_price numeric, source text)
language sql stable parallel safe as
$$
    select distinct on (candidate.key) candidate.key, candidate.base_price + coalesce(candidate.markup_price, 0), candidate.source
    from (
        select p.id::text as key, 'plan' as source, 1 as preference, p.base_price, p.markup_price, p.active, p.created_at, p.id
        from vps_plans p
        union all
        select p.provider_plan_id, 'provider_plan', 2, p.base_price, p.markup_price, p.active, p.created_at, p.id
        from vps_plans p
    ) candidate
    order by candidate.key, candidate.preference, candidate.active desc nulls last, candidate.created_at, candidate.id
$$;

-- The guard has checked every charge made before this time.
create table if not exists billing_guard (
    only_row boolean primary key default true check (only_row),
    checked_until timestamptz not null
);
insert into billing_guard (checked_until) values (now()) on conflict do nothing;

insert into billing_schema_migrations (name) values ('016_billing_charges') on conflict do nothing;
