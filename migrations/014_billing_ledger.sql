-- The price clock and the run history.

-- A catch-up of many instances overflows numeric(10,2). Raising only the precision rewrites no rows.
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

-- Exact microseconds since the Unix epoch. Extracts from an interval because extract() from a timestamptz is only stable,
-- and this function must be immutable to be inlined.
create or replace function billing_epoch_microseconds(moment timestamptz) returns numeric
language sql immutable parallel safe as
$$ select round(extract(epoch from moment - timestamptz '1970-01-01 00:00:00+00') * 1000000)::numeric $$;

-- The price clock F(t): the cost of a monthly price from the Unix epoch to t, rounded half up to the cent. 730 hours cost
-- exactly the price. 730 hours are 2,628,000,000,000 microseconds; div() on integers keeps the rounding exact.
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

-- True if hours can be counted from this time: it is neither null nor infinite, and not before the price clock's epoch.
create or replace function billing_is_moment(moment timestamptz) returns boolean
language sql immutable parallel safe as
$$ select coalesce(moment >= timestamptz '1970-01-01 00:00:00+00' and moment < 'infinity', false) $$;

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

-- One row per cycle.
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
comment on column billing_runs.started_at is 'by the database''s clock; the cycle charges everything due at this moment';
comment on column billing_runs.outcome is
    'stopped: a drain''s deadline passed first; abandoned: its leader was lost. The next cycle continues from what was committed';
comment on column billing_runs.debts is 'instances whose wallet could not pay all their hours';
comment on column billing_runs.failures is 'instances that could not be charged for another reason';

-- One row per committed batch, written in the batch's own transaction. A run's totals are the sum of these rows, so they
-- are right even if the leader died before it could add them up.
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

insert into billing_schema_migrations (name) values ('014_billing_ledger') on conflict do nothing;
