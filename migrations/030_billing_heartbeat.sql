-- Heartbeat and billing imply each other: until when the leader may write heartbeats.

-- Until when the leader may write heartbeats: while the next cycle is less than 90 minutes overdue. The cycle is due one
-- interval after the start of the last successful one, but not before the end of a takeover wait. On a database that was
-- never billed it is due when the first term begins. Null before that.
create or replace function billing_beats_until() returns timestamptz
language sql stable as
$$
    select greatest(
        (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome))
            + coalesce(l.interval_minutes, 60) * interval '1 minute',
        l.bill_after,
        (select t.minted_at from billing_terms t order by t.term limit 1)
    ) + interval '90 minutes'
    from billing_leadership l
$$;

insert into billing_schema_migrations (name) values ('030_billing_heartbeat') on conflict do nothing;
