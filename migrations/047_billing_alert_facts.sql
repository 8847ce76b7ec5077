-- What alerts ask about cycles beside the status, so that they don't depend on the memory of a process that may be gone.

-- Why a cycle was stopped: a drain's deadline is worth an alert, and a pause is not.
alter table billing_runs drop constraint if exists billing_runs_cause_check;
alter table billing_runs add constraint billing_runs_cause_check
    check (cause in ('controller', 'organizations', 'drain', 'halt'));
comment on column billing_runs.cause is
    'of a failed cycle. controller: it is tried again at once; organizations: none of them could be charged, for reasons of their'
    ' own. Of a stopped cycle. drain: its replica was told to stop and could not finish in time; halt: billing was halted';

-- charged_instances: instances charged in the hour, or the interval if longer, that ended with the start of the newest successful
-- cycle. Every instance is due once an hour, so this is about the number of instances that can pay, however often cycles run. It
-- is null if no cycle has succeeded. Rows that were deleted or hidden lower it, and nothing else shows that: a cycle with little
-- to do is a success.
-- failing_cycles: the newest cycles in a row that have failed.
-- cut_short_cycles: cycles that a drain has stopped within the last hour.
create or replace function billing_alert_facts()
returns table (charged_instances bigint, failing_cycles bigint, cut_short_cycles bigint)
language sql stable set jit = off as
$$
    select (
            select sum(r.instances)::bigint
            from billing_runs r
            where r.kind = 'cycle' and r.started_at <= last.started_at
                and r.started_at > last.started_at - greatest(interval '1 hour', coalesce(l.interval_minutes, 60) * interval '1 minute')
        ),
        (select count(*) from billing_runs r
         where r.kind = 'cycle' and r.outcome = 'failed' and r.started_at > coalesce(last.started_at, '-infinity')),
        (select count(*) from billing_runs r
         where r.kind = 'cycle' and r.outcome = 'stopped' and r.cause = 'drain' and r.started_at > now() - interval '1 day'
             and r.finished_at > now() - interval '1 hour')
    from billing_leadership l
    left join lateral (
        select r.started_at from billing_runs r
        where r.kind = 'cycle' and billing_is_successful(r.outcome)
        order by r.started_at desc
        limit 1
    ) last on true
$$;
create or replace view billing_alert_facts as select * from billing_alert_facts();

insert into billing_schema_migrations (name) values ('047_billing_alert_facts') on conflict do nothing;
