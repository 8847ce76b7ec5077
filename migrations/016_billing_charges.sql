-- Faster charges, and organizations that the audit's guard has stopped.

-- The charge for [period_start, period_start + hours): F(end) - F(start), as in 014. In whole microseconds, since adding an
-- interval to a timestamptz is not immutable and would keep the planner from inlining this into the statements that use it.
create or replace function billing_charge(monthly_price numeric, period_start timestamptz, hours bigint) returns numeric
language sql immutable parallel safe as
$$
    select (div(200 * monthly_price * (billing_epoch_microseconds(period_start) + hours * 3600000000) + 2628000000000,
                5256000000000)
          - div(200 * monthly_price * billing_epoch_microseconds(period_start) + 2628000000000, 5256000000000)) * 0.01
$$;

-- What a month costs, by each text that vps_instances.plan_id may hold: the plan's id, else the provider's name for it; of
-- several the active one, then the oldest. A function and not a view, so that the application may alter its table.
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

-- Organizations for which billing has been stopped, since a charge of theirs broke an invariant; released by an audit of
-- theirs that is clean.
create table if not exists billing_holds (
    organization_id uuid primary key,
    invariant text not null,
    detail text not null,
    held_at timestamptz not null default now()
);
comment on column billing_holds.invariant is 'as `containerstacks-billing audit` names them';

-- Up to when the guard has looked at what was charged.
create table if not exists billing_guard (
    only_row boolean primary key default true check (only_row),
    checked_until timestamptz not null
);
insert into billing_guard (checked_until) values (now()) on conflict do nothing;

insert into billing_schema_migrations (name) values ('016_billing_charges') on conflict do nothing;
