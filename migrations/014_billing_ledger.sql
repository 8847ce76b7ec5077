-- What the billing cycle needs: the price clock, run history, and uniqueness of what it writes.

-- A catch-up of many instances overflows numeric(10,2). A larger precision at the same scale rewrites nothing.
do $$
begin
    if exists (
        select from pg_attribute
        where attrelid = 'billing_daemon_status'::regclass
            and attname in ('total_amount', 'total_hours')
            and format_type(atttypid, atttypmod) = 'numeric(10,2)'
    ) then
        alter table billing_daemon_status
            alter column total_amount type numeric(20, 2),
            alter column total_hours type numeric(20, 2);
    end if;
end
$$;

-- Exact microseconds since the Unix epoch. By way of an interval, since extract from timestamptz is a float on
-- PostgreSQL 13 (an interval's too, but there rounding to the microsecond restores it).
create or replace function billing_epoch_microseconds(moment timestamptz) returns numeric
language sql immutable parallel safe as
$$ select round(extract(epoch from moment - timestamptz '1970-01-01 00:00:00+00') * 1000000)::numeric $$;

-- The price clock F(t): what a monthly price has cost since the Unix epoch, to the cent, half up; 730 hours cost
-- exactly the price. 730 hours are 2,628,000,000,000 microseconds; div() on whole numbers keeps the rounding exact.
create or replace function billing_price_clock(monthly_price numeric, moment timestamptz) returns numeric
language sql immutable parallel safe as
$$ select div(200 * monthly_price * billing_epoch_microseconds(moment) + 2628000000000, 5256000000000) * 0.01 $$;

-- The charge for [period_start, period_start + hours): F(end) - F(start). It telescopes.
create or replace function billing_charge(monthly_price numeric, period_start timestamptz, hours bigint) returns numeric
language sql immutable parallel safe as
$$
    select billing_price_clock(monthly_price, period_start + hours * interval '1 hour')
         - billing_price_clock(monthly_price, period_start)
$$;

create or replace function billing_whole_hours(since timestamptz, until timestamptz) returns bigint
language sql immutable parallel safe as
$$ select floor(extract(epoch from until - since) / 3600)::bigint $$;

-- At least one whole unbilled hour. An instance with no start at all counts as due, so that it is reported.
-- Written as this disjunction so that an index on last_billed_at serves it.
create or replace function billing_is_due(last_billed_at timestamptz, created_at timestamptz, as_of timestamptz)
returns boolean
language sql stable parallel safe as
$$
    select last_billed_at <= as_of - interval '1 hour'
        or (last_billed_at is null and (created_at is null or created_at <= as_of - interval '1 hour'))
$$;

-- A time from which hours can be counted: neither null nor infinite, and not before the price clock's epoch.
create or replace function billing_is_moment(moment timestamptz) returns boolean
language sql immutable parallel safe as
$$ select coalesce(moment >= timestamptz '1970-01-01 00:00:00+00' and moment < 'infinity', false) $$;

-- How many hours of each instance a short wallet pays for, the instances given in the order in which they are charged.
-- Each gets as many of its oldest hours as what is left can pay; an hour that costs nothing is always paid.
-- The greatest k with F(start + k hours) <= F(start) + remaining is solved for, not searched.
create or replace function billing_affordable_hours(
    balance numeric, monthly_prices numeric[], period_starts timestamptz[], hours bigint[]
) returns bigint[]
language plpgsql immutable parallel safe as
$$
declare
    remaining numeric := greatest(balance, 0);
    affordable bigint[] := '{}';
    instance record;
    cost numeric;
    paid bigint;
    a_month constant numeric := 2628000000000;  -- microseconds
    bound numeric;
    step numeric;
begin
    for instance in
        select * from unnest(monthly_prices, period_starts, hours) as i (monthly_price, period_start, hours)
    loop
        paid := instance.hours;
        cost := billing_charge(instance.monthly_price, instance.period_start, paid);
        if cost > remaining then
            bound := 2 * a_month * (100 * (billing_price_clock(instance.monthly_price, instance.period_start) + remaining) + 1)
                - a_month - 200 * instance.monthly_price * billing_epoch_microseconds(instance.period_start);
            step := 200 * instance.monthly_price * 3600000000;
            paid := greatest(div(bound, step) - (mod(bound, step) = 0)::int, 0);
            cost := billing_charge(instance.monthly_price, instance.period_start, paid);
        end if;
        remaining := remaining - cost;
        affordable := affordable || paid;
    end loop;
    return affordable;
end
$$;

-- A UUID whose first 48 bits are the time (version 7's layout), so that new rows land at the right end of an index.
create or replace function billing_time_ordered_uuid(moment timestamptz) returns uuid
language sql volatile parallel safe as
$$
    select encode(
        set_bit(set_bit(
            overlay(
                uuid_send(gen_random_uuid())
                placing substring(int8send(floor(extract(epoch from moment) * 1000)::bigint) from 3)
                from 1 for 6
            ), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- One row a cycle.
create table if not exists billing_runs (
    id bigint generated always as identity primary key,
    term bigint not null,
    holder text not null,
    started_at timestamptz not null,
    finished_at timestamptz,
    outcome text not null default 'running'
        check (outcome in ('running', 'completed', 'failed', 'stopped', 'abandoned')),
    instances bigint not null default 0,
    hours bigint not null default 0,
    amount numeric not null default 0,
    debts bigint not null default 0,
    failures bigint not null default 0,
    error text
);
create index if not exists billing_runs_started_at on billing_runs (started_at);
create index if not exists billing_runs_running on billing_runs (id) where outcome = 'running';
comment on column billing_runs.started_at is 'by the database''s clock; everything due at this moment is the cycle''s work';
comment on column billing_runs.outcome is
    'stopped: a drain''s deadline came first; abandoned: its leader was lost. Either way the next cycle goes on where it ended';
comment on column billing_runs.debts is 'instances whose wallet could not pay all their hours';
comment on column billing_runs.failures is 'instances not charged for another reason';

-- One row a committed batch, written by the batch's own transaction: a run's figures are the sum of what was really
-- committed, also when its leader died before it could add them up.
create table if not exists billing_batches (
    id bigint generated always as identity primary key,
    run_id bigint not null,
    term bigint not null,
    written_at timestamptz not null,
    instances bigint not null,
    hours bigint not null,
    amount numeric not null,
    debts bigint not null,
    failures bigint not null
);
create index if not exists billing_batches_run on billing_batches (run_id);

-- Only rows that this controller wrote carry metadata.controller: old rows may be duplicates and stay as they are.
create unique index if not exists billing_one_charge_a_period
    on vps_billing_cycles (vps_instance_id, billing_period_start)
    where status = 'billed' and metadata ->> 'controller' = 'containerstacks-billing';
create unique index if not exists billing_one_open_debt_an_instance
    on vps_billing_cycles (vps_instance_id)
    where status = 'failed' and metadata ->> 'controller' = 'containerstacks-billing';

-- Batches read ranges of organizations. The application indexes these columns already; where it doesn't, we do.
do $$
declare
    wanted record;
begin
    for wanted in
        select * from (values ('vps_instances'), ('wallets'), ('payment_transactions')) as w (table_name)
    loop
        if not exists (
            select from pg_index x
            join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
            where x.indrelid = wanted.table_name::regclass
                and a.attname = 'organization_id' and x.indpred is null and x.indisvalid
        ) then
            execute format('create index if not exists billing_%s_organization on %1$I (organization_id)', wanted.table_name);
        end if;
    end loop;
end
$$;

insert into billing_schema_migrations (name) values ('014_billing_ledger') on conflict do nothing;
