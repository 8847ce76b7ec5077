-- One source for each fact that people ask about. Commands, the status page and the metrics read these functions; people
-- read the views over them with psql. A function with a string body does not depend on the tables that it reads, so the
-- application can alter them; a view directly over its tables would block it. Migration 028 has the facts about cycles, and
-- 032 the status.

-- The key of the advisory lock: the first 8 bytes of the SHA-256 of its name.
create or replace function billing_lock_key(lock_name text) returns bigint
language sql immutable parallel safe as
$$ select ('x' || encode(substring(sha256(convert_to(lock_name, 'UTF8')) from 1 for 8), 'hex'))::bit(64)::bigint $$;

-- Determines who leads: the session that holds the lock and has minted the newest term. Any role that may connect can take the
-- lock, so the lock alone does not make a leader.
alter table billing_leadership add column if not exists backend_pid integer;
comment on column billing_leadership.backend_pid is 'pg_backend_pid() of the lock session that minted the term';

-- Describes a session that holds the lock and has not minted the newest term; null for the leader's session. The session's
-- start tells it from a later session with the same pid. Without a recorded pid, the session's name decides; PostgreSQL cuts
-- session names to 63 bytes.
create or replace function billing_without_term(pid integer, began_at timestamptz, application_name text, role name)
returns text
language sql stable as
$$
    select coalesce(nullif(application_name, ''), 'a session without a name') || ' (pid ' || pid || ', role ' || role || ')'
    where not coalesce((
        select case
            when l.backend_pid is not null then l.backend_pid = pid and began_at <= l.elected_at
            else starts_with(application_name, 'billing elector ')
                and right(l.holder, length(application_name) - 16) = substr(application_name, 17)
        end
        from billing_leadership l), false)
$$;

-- Every replica whose lock session is connected, and, with the role 'without term', any other session that holds the lock.
create or replace function billing_replicas() returns table (instance_id text, role text, connected_at timestamptz)
language sql stable as
$$
    select
        case when holds.pid is null then regexp_replace(a.application_name, '^billing elector ', '') else coalesce(without_term, l.holder) end,
        case when holds.pid is null then 'standby' when without_term is null then 'leader' else 'without term' end,
        a.backend_start
    from billing_leadership l
    cross join pg_stat_activity a
    left join (
        select k.pid, (k.classid::bigint << 32) | k.objid::bigint as lock_key
        from pg_locks k
        where k.locktype = 'advisory' and k.granted and k.objsubid = 1
            and k.database = (select oid from pg_database where datname = current_database())
    ) holds on holds.pid = a.pid and holds.lock_key = billing_lock_key(l.lock_name)
    cross join lateral billing_without_term(a.pid, a.backend_start, a.application_name, a.usename) as without_term
    where a.datname = current_database()
        and (holds.pid is not null or starts_with(a.application_name, 'billing elector '))
    order by holds.pid is null, a.backend_start
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

create or replace view billing_replicas as select * from billing_replicas();
create or replace view billing_debts as select * from billing_debts();

insert into billing_schema_migrations (name) values ('026_billing_facts') on conflict do nothing;
