-- The controller's migrations 012 to 016 as they were before 017 existed: what a database of that time has.
-- billing_one_charge_a_period, billing_one_open_debt_an_instance and billing_holds are gone from later ones.


create table if not exists billing_schema_migrations (
    name text primary key,
    applied_at timestamptz not null default now()
);

create table if not exists billing_daemon_status (
    id serial primary key,
    daemon_instance_id varchar(255) not null unique,
    status varchar(50) not null,
    last_run_at timestamptz,
    last_run_success boolean,
    instances_billed integer default 0,
    total_amount numeric(10, 2) default 0,
    total_hours numeric(10, 2) default 0,
    error_message text,
    started_at timestamptz,
    heartbeat_at timestamptz,
    metadata jsonb default '{}',
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

create index if not exists idx_billing_daemon_status_heartbeat on billing_daemon_status (heartbeat_at);
create index if not exists idx_billing_daemon_status_instance on billing_daemon_status (daemon_instance_id);

comment on table billing_daemon_status is
    'One row a billing process that has led. Built-in billing pauses while the newest heartbeat_at is younger than 90 minutes';
comment on column billing_daemon_status.daemon_instance_id is 'hostname-pid';
comment on column billing_daemon_status.status is 'running, stopped or error';
comment on column billing_daemon_status.heartbeat_at is 'written by the leader alone, every 60 seconds';

insert into billing_schema_migrations (name) values ('012_billing_daemon_status') on conflict do nothing;


create table if not exists billing_leadership (
    only_row boolean primary key default true check (only_row),
    term bigint not null default 0,
    holder text,
    lock_name text,
    elected_at timestamptz,
    bill_after timestamptz
);
comment on column billing_leadership.bill_after is
    'no cycle before: the application''s own billing may still have been at work when the controller took over';
insert into billing_leadership (only_row) values (true) on conflict do nothing;

create table if not exists billing_terms (
    term bigint primary key,
    holder text not null,
    minted_at timestamptz not null
);

insert into billing_schema_migrations (name) values ('013_billing_leadership') on conflict do nothing;


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

create or replace function billing_epoch_microseconds(moment timestamptz) returns numeric
language sql immutable parallel safe as
$$ select round(extract(epoch from moment - timestamptz '1970-01-01 00:00:00+00') * 1000000)::numeric $$;

create or replace function billing_price_clock(monthly_price numeric, moment timestamptz) returns numeric
language sql immutable parallel safe as
$$ select div(200 * monthly_price * billing_epoch_microseconds(moment) + 2628000000000, 5256000000000) * 0.01 $$;

create or replace function billing_charge(monthly_price numeric, period_start timestamptz, hours bigint) returns numeric
language sql immutable parallel safe as
$$
    select billing_price_clock(monthly_price, period_start + hours * interval '1 hour')
         - billing_price_clock(monthly_price, period_start)
$$;

create or replace function billing_whole_hours(since timestamptz, until timestamptz) returns bigint
language sql immutable parallel safe as
$$ select floor(extract(epoch from until - since) / 3600)::bigint $$;

create or replace function billing_is_due(last_billed_at timestamptz, created_at timestamptz, as_of timestamptz)
returns boolean
language sql stable parallel safe as
$$
    select last_billed_at <= as_of - interval '1 hour'
        or (last_billed_at is null and (created_at is null or created_at <= as_of - interval '1 hour'))
$$;

create or replace function billing_is_moment(moment timestamptz) returns boolean
language sql immutable parallel safe as
$$ select coalesce(moment >= timestamptz '1970-01-01 00:00:00+00' and moment < 'infinity', false) $$;

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

create unique index if not exists billing_one_charge_a_period
    on vps_billing_cycles (vps_instance_id, billing_period_start)
    where status = 'billed' and metadata ->> 'controller' = 'containerstacks-billing';
create unique index if not exists billing_one_open_debt_an_instance
    on vps_billing_cycles (vps_instance_id)
    where status = 'failed' and metadata ->> 'controller' = 'containerstacks-billing';

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


create table if not exists billing_wallet_baselines (
    wallet_id uuid primary key,
    organization_id uuid not null,
    baseline numeric not null,
    adopted_balance numeric not null,
    adopted_at timestamptz not null default now()
);

insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)
select w.id, w.organization_id, w.balance - coalesce(t.completed, 0), w.balance
from wallets w
left join (
    select organization_id, sum(amount) as completed
    from payment_transactions
    where status = 'completed'
    group by organization_id
) t on t.organization_id = w.organization_id
where w.balance is not null
    and w.balance <> 'NaN'
    and not exists (
        select from wallets other where other.organization_id = w.organization_id and other.id <> w.id
    )
    and not exists (select from billing_schema_migrations where name = '015_billing_wallet_baselines')
on conflict do nothing;

insert into billing_schema_migrations (name) values ('015_billing_wallet_baselines') on conflict do nothing;


create or replace function billing_charge(monthly_price numeric, period_start timestamptz, hours bigint) returns numeric
language sql immutable parallel safe as
$$
    select (div(200 * monthly_price * (billing_epoch_microseconds(period_start) + hours * 3600000000) + 2628000000000,
                5256000000000)
          - div(200 * monthly_price * billing_epoch_microseconds(period_start) + 2628000000000, 5256000000000)) * 0.01
$$;

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

create table if not exists billing_holds (
    organization_id uuid primary key,
    invariant text not null,
    detail text not null,
    held_at timestamptz not null default now()
);
comment on column billing_holds.invariant is 'as `containerstacks-billing audit` names them';

create table if not exists billing_guard (
    only_row boolean primary key default true check (only_row),
    checked_until timestamptz not null
);
insert into billing_guard (checked_until) values (now()) on conflict do nothing;

insert into billing_schema_migrations (name) values ('016_billing_charges') on conflict do nothing;
