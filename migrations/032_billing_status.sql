-- The state of billing: until when the leader may write heartbeats, when the next cycle is due, and the status.

-- The time until which the leader may write heartbeats: while the next cycle is less than 90 minutes overdue. The cycle is due
-- one interval after the start of the last successful one, but not before the end of a takeover wait. On a database that was
-- never billed it is due when the first term begins. Null before that. A live daemon's heartbeat keeps the application's own
-- billing paused, so the leader writes none. While another program bills, the leader keeps writing its heartbeat: a third biller
-- would make it worse.
create or replace function billing_beats_until() returns timestamptz
language sql stable as
$$
    select case
        when exists (select from billing_live_daemons()) then '-infinity'
        when exists (select from billing_notices() n where n.halts) then 'infinity'
        else greatest(
            (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome))
                + coalesce(l.interval_minutes, 60) * interval '1 minute',
            l.bill_after,
            billing_resumed_at(),
            (select t.minted_at from billing_terms t order by t.term limit 1)
        ) + interval '90 minutes' end
    from billing_leadership l
$$;

-- When the next cycle is due, and what it waits for: 'leader' if no session holds the lock, 'running' during a cycle,
-- 'halted' while a notice halts billing, 'takeover' until the takeover delay has passed, 'interval' until the interval has passed, and 'nothing' once it is due.
-- due_at is null if no cycle has ever completed.
-- A cycle that failed because of the organizations is not retried before the interval has passed.
create or replace function billing_next_cycle() returns table (due_at timestamptz, waiting_for text)
language sql stable as
$$
    select greatest(schedule.due_at, l.bill_after),
        case
            when not exists (select from billing_replicas() where role = 'leader') then 'leader'
            when exists (select from billing_runs where outcome = 'running' and term = l.term) then 'running'
            when exists (select from billing_notices() n where n.halts) then 'halted'
            when l.bill_after > clock_timestamp() and l.bill_after >= coalesce(schedule.due_at, '-infinity') then 'takeover'
            when schedule.due_at > clock_timestamp() then 'interval'
            else 'nothing'
        end
    from billing_leadership l
    cross join lateral (
        select max(r.started_at) + coalesce(l.interval_minutes, 60) * interval '1 minute' as due_at
        from billing_runs r
        where r.kind = 'cycle' and billing_got_through(r.outcome, r.cause)
    ) schedule
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

insert into billing_schema_migrations (name) values ('032_billing_status') on conflict do nothing;
