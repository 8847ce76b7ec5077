-- Other billers: anything but this controller that charges instance-hours or writes a heartbeat. The leader looks for them and
-- stores its findings here. Every replica, `status`, the status page, the metrics and psql read the result from
-- billing_notices.

-- True if this controller wrote the row of billing_daemon_status. Every version stores its term there.
create or replace function billing_is_our_status(metadata jsonb) returns boolean
language sql immutable parallel safe as
$$ select coalesce(jsonb_typeof(metadata -> 'term') = 'number', false) or billing_is_ours(metadata) $$;

-- The last heartbeat of each other daemon that a leader has read, and the time since which the daemon has written no newer one.
-- Only the database's clock counts, because the daemon's may be wrong by hours.
create table if not exists billing_daemon_sightings (
    daemon_instance_id text primary key,
    heartbeat_at timestamptz,
    changed boolean not null default false,
    since timestamptz not null default clock_timestamp()
);
comment on column billing_daemon_sightings.changed is 'a later reading found another heartbeat, so the daemon was alive';
comment on column billing_daemon_sightings.since is 'when a leader first read this heartbeat';

-- Periods that another program has billed since the takeover, the newest 100.
create table if not exists billing_foreign_periods (
    period_id uuid primary key,
    vps_instance_id uuid not null,
    billed_until timestamptz not null,
    created_at timestamptz not null
);
comment on column billing_foreign_periods.period_id is 'id of the row in vps_billing_cycles';

-- What operators have told the leader to do. The newest command counts.
create table if not exists billing_commands (
    id bigint generated always as identity primary key,
    command text not null check (command in ('resume')),
    given_at timestamptz not null default clock_timestamp(),
    given_by text not null,
    reason text
);

alter table billing_leadership
    add column if not exists takeover_delay_seconds double precision,
    add column if not exists other_billers text not null default 'stop' check (other_billers in ('stop', 'warn'));
comment on column billing_leadership.takeover_delay_seconds is
    'while a takeover waits: the time that must have passed since the newest period of another program; else null';
comment on column billing_leadership.other_billers is 'BILLING_OTHER_BILLERS of the leader of this term';

-- The time when an operator last accepted what other programs had billed.
create or replace function billing_resumed_at() returns timestamptz
language sql stable as
$$ select max(c.given_at) from billing_commands c where c.command = 'resume' $$;

-- Other daemons that are alive: their heartbeat changed between two readings, whatever their status says, or it was recent when
-- a leader first read it and the status says `running`. A daemon is silent after 180 seconds without a change.
create or replace function billing_live_daemons() returns table (daemon_instance_id text, since timestamptz)
language sql stable as
$$
    select d.daemon_instance_id, d.since
    from billing_daemon_sightings d
    join billing_daemon_status s on s.daemon_instance_id = d.daemon_instance_id
    where clock_timestamp() < d.since + interval '180 seconds'
        and (d.changed or (s.status = 'running'
            and d.heartbeat_at > d.since - interval '180 seconds' and d.heartbeat_at < d.since + interval '180 seconds'))
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
$$;
create or replace view billing_notices as select * from billing_notices();

insert into billing_schema_migrations (name) values ('030_billing_other_billers') on conflict do nothing;
