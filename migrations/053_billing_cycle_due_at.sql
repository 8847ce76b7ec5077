-- The time of the next cycle as a separate fact. The leader asks for it before each cycle, and the reason that
-- billing_next_cycle() also returns took ten times as long to plan.

-- When the next cycle is due, by the database's clock; null if none has been scheduled yet. A cycle counts from its start, whichever
-- replica led it. A trigger makes one due at once; a takeover's wait delays both.
create or replace function billing_cycle_due_at() returns timestamptz language sql stable as
$$
    select greatest(l.bill_after, least(
        (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_got_through(r.outcome, r.cause))
            + coalesce(l.interval_minutes, 60) * interval '1 minute',
        (select min(c.given_at) from billing_commands c where c.command = 'trigger' and c.finished_at is null)))
    from billing_leadership l
$$;

create or replace function billing_next_cycle() returns table (due_at timestamptz, waiting_for text) language sql stable as
$$
    select scheduled.due_at,
        case
            when not exists (select from billing_replicas() where role = 'leader') then 'leader'
            when exists (select from billing_runs where outcome = 'running' and term = l.term) then 'running'
            when exists (select from billing_notices() n where n.halts) then 'halted'
            when l.bill_after > clock_timestamp() and l.bill_after = scheduled.due_at then 'takeover'
            when scheduled.due_at > clock_timestamp() then 'interval'
            else 'nothing'
        end
    from billing_leadership l
    cross join lateral (select billing_cycle_due_at() as due_at) scheduled
$$;

insert into billing_schema_migrations (name) values ('053_billing_cycle_due_at') on conflict do nothing;
