-- Control: what operators tell the leader to do. A command adds a row to billing_commands and never takes the lock. The leader
-- learns of the row with its ping, obeys between two batches, and records that it has.

alter table billing_commands drop constraint if exists billing_commands_command_check;
alter table billing_commands add constraint billing_commands_command_check
    check (command in ('pause', 'resume', 'trigger', 'suspend', 'unsuspend', 'waive', 'step-down'));
alter table billing_commands
    add column if not exists term bigint,
    add column if not exists until timestamptz,
    add column if not exists organization_id uuid,
    add column if not exists instance_id uuid,
    add column if not exists acknowledged_at timestamptz,
    add column if not exists acknowledged_by text,
    add column if not exists finished_at timestamptz,
    add column if not exists run_id bigint,
    add column if not exists refusal text;
comment on column billing_commands.term is 'the newest term when the command was given';
comment on column billing_commands.until is 'of a pause or a suspension: when it ends; null: indefinitely. Of a waiver: the end of the hours';
comment on column billing_commands.acknowledged_at is 'when a leader first read the command';
comment on column billing_commands.finished_at is 'when the leader had nothing left to do for the command. A pause: no batch is in hand any more';
comment on column billing_commands.run_id is 'the run that carried the command out';
comment on column billing_commands.refusal is 'why the leader did not obey';

update billing_commands set acknowledged_at = given_at, finished_at = given_at where command = 'resume' and finished_at is null;
create index if not exists billing_commands_open on billing_commands (id) where finished_at is null;

-- The pause that applies now; no row if there is none. The newest pause or resume counts, and a pause ends by the database's
-- clock. A pause that was given during another one replaces it, and `since` is the start of the first.
create or replace function billing_pause()
returns table (since timestamptz, until timestamptz, given_by text, reason text)
language sql stable as
$$
    with pause as (
        select p.*, lag(coalesce(p.until, 'infinity')) over (order by p.id) > p.given_at as replaces
        from billing_commands p
        where p.command = 'pause'
            and p.id > coalesce((select max(r.id) from billing_commands r where r.command = 'resume'), 0)
    )
    select (select max(f.given_at) from pause f where f.replaces is not true), newest.until, newest.given_by, newest.reason
    from (select * from pause order by id desc limit 1) newest
    where coalesce(newest.until, 'infinity') > clock_timestamp()
$$;

-- When the last pause ended by the clock; null if the last one was ended by `resume`, or has not ended.
create or replace function billing_pause_ended_at() returns timestamptz
language sql stable as
$$
    select c.until
    from (select * from billing_commands p where p.command in ('pause', 'resume') order by p.id desc limit 1) c
    where c.command = 'pause' and c.until <= clock_timestamp()
$$;

-- Notices: what operators must know about billing as a whole. While a notice halts billing, the leader charges nothing. The
-- message holds no customer's data, because the application and the status page show it.
create or replace function billing_notices() returns table (kind text, halts boolean, since timestamptz, message text)
language sql stable as
$$
    select 'other_daemon', true, min(d.since),
        'another billing daemon is alive: ' || string_agg(d.daemon_instance_id, ', ' order by d.daemon_instance_id)
            || '; stop it, and billing starts 3 minutes after its last heartbeat'
    from billing_live_daemons() d
    having count(*) > 0
    union all
    select 'other_periods', l.other_billers = 'stop' and p.repeated, p.since,
        'another program has billed ' || case when p.periods >= 100 then 'at least ' else '' end
            || p.instances || case when p.instances = 1 then ' instance' else ' instances' end
            || ' since ' || to_char(p.since at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC (see billing_foreign_periods); '
            || case when l.other_billers = 'warn' then 'BILLING_OTHER_BILLERS=warn lets billing continue'
                when p.repeated then 'stop that program, then run `containerstacks-billing resume`'
                else 'billing stops if that happens again; `containerstacks-billing resume` accepts it' end
    from billing_leadership l
    cross join lateral (
        select count(*) as periods, count(distinct f.vps_instance_id) as instances, min(f.created_at) as since,
            -- a person may correct one instance by hand; several instances, or several intervals, point to a program
            count(distinct f.vps_instance_id) > 1 or count(distinct floor(
                extract(epoch from f.created_at) / (60 * coalesce(l.interval_minutes, 60)))) > 1 as repeated
        from billing_foreign_periods f
        where f.created_at > coalesce(billing_resumed_at(), '-infinity')
    ) p
    where p.periods > 0
    union all
    select 'paused', true, p.since,
        'paused ' || case when p.until is null then 'until `containerstacks-billing resume`'
                else 'until ' || to_char(p.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' end
            || ' by ' || p.given_by || ': ' || p.reason
    from billing_pause() p
$$;

-- The time until which the leader may write heartbeats: while the next cycle is less than 90 minutes overdue. The cycle is due
-- one interval after the start of the last successful one, but not before the end of a takeover wait or of a pause. On a database
-- that was never billed it is due when the first term begins. Null before that. A live daemon's heartbeat keeps the application's
-- own billing paused, so the leader writes none. While another program bills, the leader keeps writing its heartbeat: a third
-- biller would make it worse. So it does during a pause, which an operator wants.
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
            billing_pause_ended_at(),
            (select t.minted_at from billing_terms t order by t.term limit 1)
        ) + interval '90 minutes' end
    from billing_leadership l
$$;

-- When the next cycle is due, and what it waits for: 'leader' if no session holds the lock, 'running' during a cycle,
-- 'halted' while a notice halts billing, 'takeover' until the takeover delay has passed, 'interval' until the interval has
-- passed, and 'nothing' once it is due.
-- due_at is null if no cycle has ever completed.
-- A cycle that failed because of the organizations is not retried before the interval has passed. `trigger` makes a cycle due.
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
        select least(
            max(r.started_at) + coalesce(l.interval_minutes, 60) * interval '1 minute',
            (select min(c.given_at) from billing_commands c where c.command = 'trigger' and c.finished_at is null)) as due_at
        from billing_runs r
        where r.kind = 'cycle' and billing_got_through(r.outcome, r.cause)
    ) schedule
$$;

-- Why the leader does not obey a command now; null if it does. A trigger doesn't shorten a pause or a takeover. A step-down is
-- meant for the leader of its term, and is refused if no replica could take over.
create or replace function billing_refusal(command text, given_in bigint) returns text
language sql stable as
$$
    select case
        when command = 'trigger' and halt.message is not null then 'billing is halted: ' || halt.message
        when command = 'trigger' and l.bill_after > clock_timestamp()
            then 'a takeover waits until ' || to_char(l.bill_after at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
                || ' UTC, because the application may still be billing; then the cycle starts by itself'
        when command = 'step-down' and given_in < l.term then l.holder || ' has taken over already'
        when command = 'step-down' and not exists (select from billing_replicas() r where r.role = 'standby')
            then 'no standby is connected, so no replica could take over from ' || l.holder
    end
    from billing_leadership l
    left join lateral (select n.message from billing_notices() n where n.halts limit 1) halt on true
$$;

insert into billing_schema_migrations (name) values ('042_billing_control') on conflict do nothing;
