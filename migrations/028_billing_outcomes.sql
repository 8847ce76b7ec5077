-- Outcomes of cycles, the facts that people ask about cycles, and figures that add up:
-- planned = instances + debts - charged_in_part + failures + suspended + vanished.

-- Numbers of runs are consecutive. An identity would leave a gap for each run that is rolled back. The fence lets only one
-- leader insert.
create or replace function billing_next_run() returns bigint
language sql volatile as
$$ select coalesce(max(r.id), 0) + 1 from billing_runs r $$;
alter table billing_runs alter column id drop identity if exists;
alter table billing_runs alter column id set default billing_next_run();

alter table billing_runs
    add column if not exists kind text not null default 'cycle' check (kind in ('cycle', 'collection')),
    add column if not exists cause text check (cause in ('controller', 'organizations')),
    add column if not exists planned bigint,
    add column if not exists charged_in_part bigint not null default 0,
    add column if not exists suspended bigint not null default 0,
    add column if not exists vanished bigint,
    add column if not exists failures_by_reason jsonb not null default '{}';
alter table billing_runs drop constraint if exists billing_runs_outcome_check;
alter table billing_runs add constraint billing_runs_outcome_check
    check (outcome in ('running', 'completed', 'completed_with_failures', 'failed', 'stopped', 'abandoned'));
comment on column billing_runs.kind is 'cycle: charges everything due; collection: collects debts between two cycles';
comment on column billing_runs.cause is
    'of a failed cycle. controller: it is tried again at once; organizations: none of them could be charged, for reasons of their own';
comment on column billing_runs.planned is
    'instances due at the start, with those that the plan missed; null if the cycle ended before it had a plan';
comment on column billing_runs.charged_in_part is 'counted both in instances and in debts';
comment on column billing_runs.vanished is
    'planned, and no longer due when their turn came: deleted, or charged by another program. Negative if more instances became'
    ' due after the plan; null if the cycle did not get through its plan';

alter table billing_batches
    add column if not exists charged_in_part bigint not null default 0,
    add column if not exists suspended bigint not null default 0,
    add column if not exists failures_by_reason jsonb not null default '{}',
    alter column instances set default 0,
    alter column hours set default 0,
    alter column amount set default 0,
    alter column debts set default 0,
    alter column failures set default 0;

-- True if a run with this outcome has billed what was due. Nothing due, only debts and only suspended organizations count.
create or replace function billing_is_successful(outcome text) returns boolean
language sql immutable parallel safe as
$$ select outcome in ('completed', 'completed_with_failures') $$;

-- True if a cycle got through its plan: every due instance was charged, or has a recorded reason why not.
create or replace function billing_got_through(outcome text, cause text) returns boolean
language sql immutable parallel safe as
$$ select coalesce(billing_is_successful(outcome) or (outcome = 'failed' and cause = 'organizations'), false) $$;

-- Why hours of an instance can't be charged, or null if they can. `wallets` is null if the organization has none.
create or replace function billing_failure_reason(
    suspended text, wallets bigint, balance numeric, currency text, wanted_currency text, start_known boolean, hours bigint,
    monthly_price numeric
) returns text
language sql immutable parallel safe as
$$
    select case
        when suspended is not null then 'audit_violation'
        when wallets is null then 'wallet_missing'
        when wallets > 1 then 'wallet_duplicate'
        when balance is null then 'balance_null'
        when balance = 'NaN' then 'balance_nan'
        when balance in ('infinity', '-infinity') then 'balance_infinite'
        when upper(currency) is distinct from wanted_currency then 'currency_mismatch'
        when not start_known then 'start_unknown'
        when hours = 0 then null
        when monthly_price is null then 'price_missing'
        when monthly_price < 0 then 'price_negative'
        when monthly_price = 'NaN' then 'price_nan'
        when monthly_price = 'infinity' then 'price_infinite'
    end
$$;

-- What the batches of a run have committed.
create or replace function billing_run_totals(run bigint)
returns table (
    instances bigint, charged_in_part bigint, hours bigint, amount numeric, debts bigint, failures bigint, suspended bigint,
    failures_by_reason jsonb
)
language sql stable as
$$
    select coalesce(sum(b.instances), 0)::bigint, coalesce(sum(b.charged_in_part), 0)::bigint,
        coalesce(sum(b.hours), 0)::bigint, coalesce(sum(b.amount), 0.00), coalesce(sum(b.debts), 0)::bigint,
        coalesce(sum(b.failures), 0)::bigint, coalesce(sum(b.suspended), 0)::bigint,
        (select coalesce(jsonb_object_agg(reason.key, reason.instances), '{}') from (
            select r.key, sum(r.value::bigint) as instances
            from billing_batches f cross join lateral jsonb_each_text(f.failures_by_reason) r
            where f.run_id = run
            group by r.key) reason)
    from billing_batches b
    where b.run_id = run
$$;

-- Organizations that an earlier cycle could not charge although their rows looked sound.
create or replace function billing_failed_before() returns table (organization_id uuid)
language sql stable as
$$
    select distinct c.organization_id
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' in ('error', 'locked')
$$;

-- Failures by organization and reason: instances that could not be charged for a reason other than the balance. Suspended
-- instances are not failures.
create or replace function billing_failures()
returns table (organization_id uuid, reason text, instances bigint, since timestamptz)
language sql stable as
$$
    select c.organization_id, c.metadata ->> 'reason', count(distinct c.vps_instance_id), min(c.billing_period_start)
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata)
        and c.metadata ->> 'reason' not in ('insufficient_balance', 'audit_violation')
    group by c.organization_id, c.metadata ->> 'reason'
$$;

-- Every run, newest first.
create or replace view billing_history as
select id, kind, term, holder, started_at, finished_at, extract(epoch from finished_at - started_at) as seconds, outcome, cause,
    planned, instances, charged_in_part, hours, amount, debts, failures, failures_by_reason, suspended, vanished, error
from billing_runs
order by started_at desc, id desc;

-- The newest cycle that has ended; no row if there is none.
create or replace function billing_last_cycle() returns setof billing_runs
language sql stable as
$$
    select * from billing_runs r where r.outcome <> 'running' and r.kind = 'cycle' order by r.started_at desc, r.id desc limit 1
$$;

create or replace view billing_failures as select * from billing_failures();

insert into billing_schema_migrations (name) values ('028_billing_outcomes') on conflict do nothing;
