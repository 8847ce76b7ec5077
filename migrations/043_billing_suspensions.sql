-- Suspensions by operators, beside those of the guard. Neither ends the other.

alter table billing_suspensions
    add column if not exists kind text not null default 'guard' check (kind in ('guard', 'operator')),
    add column if not exists until timestamptz;
alter table billing_suspensions drop constraint if exists billing_suspensions_pkey;
alter table billing_suspensions add constraint billing_suspensions_pkey primary key (organization_id, kind);
comment on column billing_suspensions.kind is 'guard: a clean audit ends it; operator: `unsuspend` or the time in `until` ends it';
comment on column billing_suspensions.reason is
    'of the guard: the invariant that was violated, as `containerstacks-billing audit` names it; of an operator: the operator''s words';
comment on column billing_suspensions.until is 'when an operator''s suspension ends; null: not before `unsuspend`';

-- Why an organization is not charged now, as its open rows say; no row if it is charged. The guard's reason goes first.
create or replace function billing_suspended(of_organization uuid)
returns table (failure_reason text, detail text, suspended_at timestamptz)
language sql stable parallel safe as
$$
    select case when s.kind = 'guard' then 'audit_violation' else 'suspended' end,
        s.reason || ', ' || s.detail
            || coalesce(', until ' || to_char(s.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC', ''),
        s.suspended_at
    from billing_suspensions s
    where s.organization_id = of_organization and (s.until is null or s.until > now())
    order by s.kind
    limit 1
$$;

-- Why hours of an instance can't be charged, or null if they can. `suspended` is the failure
-- reason of billing_suspended. `wallets` is null if the organization has none.
create or replace function billing_failure_reason(
    suspended text, wallets bigint, balance numeric, currency text, wanted_currency text, start_known boolean, hours bigint,
    monthly_price numeric
) returns text
language sql immutable parallel safe as
$$
    select case
        when suspended is not null then suspended
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
        and not exists (
            select from billing_suspensions s
            where s.organization_id = w.organization_id and (s.until is null or s.until > now()))
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
        and c.metadata ->> 'reason' not in ('insufficient_balance', 'audit_violation', 'suspended')
    group by c.organization_id, c.metadata ->> 'reason'
$$;

-- The wallet and the suspension of one organization. balance is null unless there is exactly one wallet.
-- suspended is the failure reason of its open rows.
create or replace function billing_organization(of_organization uuid)
returns table (
    organization_id uuid, organization text, slug text, wallets bigint, balance numeric, currency text,
    suspended text, suspended_detail text, suspended_at timestamptz, instances bigint
)
language sql stable as
$$
    select o.id, o.name, o.slug, wallet.wallets, wallet.balance, wallet.currency, s.failure_reason, s.detail, s.suspended_at,
        (select count(*) from vps_instances i where i.organization_id = o.id)
    from organizations o
    cross join lateral (
        select count(*) as wallets, case when count(*) = 1 then min(w.balance) end as balance,
            case when count(*) = 1 then min(w.currency::text) end as currency
        from wallets w where w.organization_id = o.id
    ) wallet
    left join lateral billing_suspended(o.id) s on true
    where o.id = of_organization
$$;

-- One row: who leads, when the next cycle is due, and the state of billing.
create or replace function billing_status()
returns table (
    leader text, term bigint, leading_since timestamptz, standbys text[],
    next_cycle_at timestamptz, waiting_for text, running_since timestamptz, last_completed_at timestamptz, last_run jsonb,
    heartbeat_age_seconds double precision,
    debts bigint, owed numeric, failures bigint, suspended bigint, checked_until timestamptz,
    database_time timestamptz
)
-- compiling this query would take longer than running it
language sql stable set jit = off as
$$
    select replica.leader, l.term, case when replica.leader is not null then l.elected_at end, replica.standbys,
        next.due_at, next.waiting_for,
        case when replica.leader is not null then (
            select r.started_at from billing_runs r where r.outcome = 'running' and r.term = l.term order by r.id desc limit 1) end,
        (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome)),
        -- the amount as text, because JSON readers turn numbers into floats
        (select to_jsonb(r) || jsonb_build_object('amount', r.amount::text)
         from billing_history r where r.id = (select c.id from billing_last_cycle() c)),
        (select extract(epoch from clock_timestamp() - max(s.heartbeat_at))::float8
         from billing_daemon_status s where isfinite(s.heartbeat_at)),
        debt.instances, debt.owed, failure.instances,
        (select count(*) from billing_suspensions s where s.kind = 'guard'),
        (select g.checked_until from billing_guard g),
        clock_timestamp()
    from billing_leadership l
    cross join billing_next_cycle() next
    cross join lateral (
        select min(r.instance_id) filter (where r.role = 'leader') as leader,
            coalesce(array_agg(r.instance_id) filter (where r.role = 'standby'), '{}') as standbys
        from billing_replicas() r
    ) replica
    cross join (select coalesce(sum(d.instances), 0)::bigint as instances, coalesce(sum(d.owed), 0) as owed from billing_debts() d) debt
    cross join (select coalesce(sum(f.instances), 0)::bigint as instances from billing_failures() f) failure
$$;

insert into billing_schema_migrations (name) values ('043_billing_suspensions') on conflict do nothing;
