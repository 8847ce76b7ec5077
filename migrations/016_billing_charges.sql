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

-- The guard has checked every charge made before this time.
create table if not exists billing_guard (
    only_row boolean primary key default true check (only_row),
    checked_until timestamptz not null
);
insert into billing_guard (checked_until) values (now()) on conflict do nothing;

insert into billing_schema_migrations (name) values ('016_billing_charges') on conflict do nothing;
