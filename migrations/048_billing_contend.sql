-- A standby's bounded wait for the billing lock, and what it finds when the wait is over. See the docstring of
-- controller/election.
--
-- The exception block keeps the timeout out of the server's log. Only the timeout is caught: after a cancelled or failed
-- wait the caller closes the session.
create or replace function billing_contend(lock_key bigint, wait_milliseconds integer, watched_pid integer)
returns table (
    locked boolean, in_recovery boolean, pid integer, backend_start timestamptz, application_name text, idle boolean,
    state_change timestamptz, ours boolean, deadline_seconds float8, generation integer, without_term text
)
language plpgsql volatile as
$$
begin
    -- A standby server grants the lock too, so it is asked first. A running server never returns to recovery.
    in_recovery := pg_is_in_recovery();
    locked := false;
    if not in_recovery then
        if wait_milliseconds > 0 then
            begin
                perform set_config('lock_timeout', wait_milliseconds::text, true);
                perform pg_advisory_lock(lock_key);
                locked := true;
            exception when lock_not_available then
                -- The lock may have been granted as the time ran out. The session then holds it twice from here on.
                locked := pg_try_advisory_lock(lock_key);
            end;
        else
            locked := pg_try_advisory_lock(lock_key);
        end if;
    end if;
    generation := (select l.generation from billing_leadership l);
    if not locked and watched_pid is not null then
        -- Read after the wait: the server keeps what a transaction has read of pg_stat_activity until it ends. The session that
        -- last held the lock is looked up by its pid, because reading pg_locks every second would cost milliseconds on a server
        -- with many locks. Its last statement is visible only to sessions of the same role.
        select a.pid, a.backend_start, a.application_name, starts_with(a.state, 'idle'), a.state_change,
            a.usesysid = (select r.oid from pg_roles r where r.rolname = session_user) and pg_has_role(a.usesysid, 'usage'),
            substring(a.query from '^/[*] leads for ([0-9]+[.]?[0-9]*) s')::float8,
            billing_without_term(a.pid, a.backend_start, a.application_name, a.usename)
        into pid, backend_start, application_name, idle, state_change, ours, deadline_seconds, without_term
        from pg_stat_activity a
        where a.pid = watched_pid;
    end if;
    return next;
end
$$;

insert into billing_schema_migrations (name) values ('048_billing_contend') on conflict do nothing;
