-- One source for each fact that people ask about. Commands, the status page and the metrics read these functions; people
-- read the views over them with psql. A function with a string body does not depend on the tables that it reads, so the
-- application can alter them; a view directly over its tables would block it.

-- Every cycle, newest first.
drop view if exists billing_history;
create view billing_history as
select id, term, holder, started_at, finished_at, extract(epoch from finished_at - started_at) as seconds, outcome,
    instances, hours, amount, debts, failures, error
from billing_runs
order by started_at desc, id desc;

-- The key of the advisory lock: the first 8 bytes of the SHA-256 of its name.
create or replace function billing_lock_key(lock_name text) returns bigint
language sql immutable parallel safe as
$$ select ('x' || encode(substring(sha256(convert_to(lock_name, 'UTF8')) from 1 for 8), 'hex'))::bit(64)::bigint $$;

-- Every replica whose lock session is connected. The leader is the session that holds the lock. A standby is recognized by the
-- name of its session. PostgreSQL cuts session names to 63 bytes, so the leader's full name comes from the leadership row.
create or replace function billing_replicas() returns table (instance_id text, role text, connected_at timestamptz)
language sql stable as
$$
    select
        case when holds.pid is not null and right(l.holder, length(name.instance_id)) = name.instance_id then l.holder else name.instance_id end,
        case when holds.pid is not null then 'leader' else 'standby' end,
        a.backend_start
    from billing_leadership l
    cross join pg_stat_activity a
    cross join lateral (select regexp_replace(a.application_name, '^billing elector ', '') as instance_id) name
    left join (
        select k.pid, (k.classid::bigint << 32) | k.objid::bigint as lock_key
        from pg_locks k
        where k.locktype = 'advisory' and k.granted and k.objsubid = 1
            and k.database = (select oid from pg_database where datname = current_database())
    ) holds on holds.pid = a.pid and holds.lock_key = billing_lock_key(l.lock_name)
    where a.datname = current_database()
        and (holds.pid is not null or starts_with(a.application_name, 'billing elector '))
    order by holds.pid is null, a.backend_start
$$;

-- When the next cycle is due, and what it waits for: 'leader' if no session holds the lock, 'running' during a cycle,
-- 'takeover' until the takeover delay has passed, 'interval' until the interval has passed, and 'nothing' once it is due.
-- due_at is null if no cycle has ever completed.
create or replace function billing_next_cycle() returns table (due_at timestamptz, waiting_for text)
language sql stable as
$$
    select greatest(schedule.due_at, l.bill_after),
        case
            when not exists (select from billing_replicas() where role = 'leader') then 'leader'
            when exists (select from billing_runs where outcome = 'running' and term = l.term) then 'running'
            when l.bill_after > clock_timestamp() and l.bill_after >= coalesce(schedule.due_at, '-infinity') then 'takeover'
            when schedule.due_at > clock_timestamp() then 'interval'
            else 'nothing'
        end
    from billing_leadership l
    cross join lateral (
        select max(r.started_at) + coalesce(l.interval_minutes, 60) * interval '1 minute' as due_at
        from billing_runs r
        where r.outcome = 'completed'
    ) schedule
$$;

-- The amount that an open row says is owed. It is read from the metadata, because total_amount can't hold every amount.
-- total_amount is the fallback if another program has overwritten the metadata.
create or replace function billing_owed(metadata jsonb, total_amount numeric) returns numeric
language sql immutable parallel safe as
$$ select case when jsonb_typeof(metadata -> 'owed') = 'number' then (metadata ->> 'owed')::numeric else total_amount end $$;

-- Debts by organization: hours that its wallet could not pay.
create or replace function billing_debts()
returns table (organization_id uuid, instances bigint, owed numeric, since timestamptz)
language sql stable as
$$
    select c.organization_id, count(distinct c.vps_instance_id), sum(billing_owed(c.metadata, c.total_amount)),
        min(c.billing_period_start)
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' = 'insufficient_balance'
    group by c.organization_id
$$;

-- Failures by organization and reason: instances that could not be charged for a reason other than the balance.
create or replace function billing_failures()
returns table (organization_id uuid, reason text, instances bigint, since timestamptz)
language sql stable as
$$
    select c.organization_id, c.metadata ->> 'reason', count(distinct c.vps_instance_id), min(c.billing_period_start)
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' <> 'insufficient_balance'
    group by c.organization_id, c.metadata ->> 'reason'
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
        (select max(r.started_at) from billing_runs r where r.outcome in ('completed', 'completed_with_failures')),
        -- the amount as text, because JSON readers turn numbers into floats
        (select to_jsonb(r) || jsonb_build_object('amount', r.amount::text)
         from billing_history r where r.outcome <> 'running' order by r.started_at desc, r.id desc limit 1),
        (select extract(epoch from clock_timestamp() - max(s.heartbeat_at))::float8
         from billing_daemon_status s where isfinite(s.heartbeat_at)),
        debt.instances, debt.owed, failure.instances,
        (select count(*) from billing_suspensions),
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

create or replace view billing_status as select * from billing_status();
create or replace view billing_replicas as select * from billing_replicas();
create or replace view billing_debts as select * from billing_debts();
create or replace view billing_failures as select * from billing_failures();

insert into billing_schema_migrations (name) values ('026_billing_facts') on conflict do nothing;
