-- Looks for other billers. Each statement needs the fence. Migration 030 decides what the findings mean.

-- name: observe_daemons
-- Stores the heartbeats of other daemons. A row that did not change keeps the time of its first reading, unless that time lies
-- in the future because the database's clock was set back.
with other_daemon as (
    select daemon_instance_id, heartbeat_at from billing_daemon_status where not billing_is_our_status(metadata)
), gone as (
    delete from billing_daemon_sightings s
    where not exists (select from other_daemon o where o.daemon_instance_id = s.daemon_instance_id)
)
insert into billing_daemon_sightings as s (daemon_instance_id, heartbeat_at)
select daemon_instance_id, heartbeat_at from other_daemon
on conflict (daemon_instance_id) do update
set heartbeat_at = excluded.heartbeat_at, since = clock_timestamp(),
    changed = s.changed or s.heartbeat_at is distinct from excluded.heartbeat_at
where s.heartbeat_at is distinct from excluded.heartbeat_at or s.since > clock_timestamp()

-- name: extend_takeover
-- A run of the application's own billing reads its list when it starts and can take hours. So a takeover also waits until no
-- program has billed a period for the whole takeover delay.
update billing_leadership l
set bill_after = n.bill_after,
    takeover_delay_seconds = case when n.bill_after > clock_timestamp() then l.takeover_delay_seconds end
from (
    select greatest(t.bill_after, (
        select max(c.created_at) from vps_billing_cycles c
        where c.status = 'billed' and not billing_is_ours(c.metadata) and c.created_at <= clock_timestamp()
    ) + t.takeover_delay_seconds * interval '1 second') as bill_after
    from billing_leadership t
) n
where l.takeover_delay_seconds is not null and (n.bill_after <= clock_timestamp() or n.bill_after > l.bill_after)

-- name: record_foreign_periods
-- Stores the newest periods that another program has billed since the takeover and since the last `resume`. A period counts
-- only if last_billed_at equals its end: a program that bills moves last_billed_at, but a correction by hand or an import of old
-- rows doesn't.
-- If an open row begins at that end, billing had already reached it, so the period doesn't count.
with newest as (
    select c.id, c.vps_instance_id, c.billing_period_end, c.created_at
    from billing_leadership l
    cross join lateral (
        select * from vps_billing_cycles v
        where v.status = 'billed' and not billing_is_ours(v.metadata) and v.created_at <= clock_timestamp()
            and v.created_at > greatest(l.bill_after, billing_resumed_at(),
                (select t.minted_at from billing_terms t order by t.term limit 1))
        order by v.created_at desc
        limit 10000
    ) c
)
insert into billing_foreign_periods (period_id, vps_instance_id, billed_until, created_at)
select n.id, n.vps_instance_id, n.billing_period_end, n.created_at
from newest n
join vps_instances i on i.id = n.vps_instance_id and i.last_billed_at = n.billing_period_end
where not exists (
    select from vps_billing_cycles o
    where o.vps_instance_id = n.vps_instance_id and o.billing_period_start = n.billing_period_end
        and o.status = 'failed' and billing_is_ours(o.metadata)
)
order by n.created_at desc
limit 100
on conflict do nothing

-- name: prune_foreign_periods
delete from billing_foreign_periods
where created_at <= billing_resumed_at()
    or period_id in (select period_id from billing_foreign_periods order by created_at desc offset 100)

-- name: notices
select kind, halts, since, message from billing_notices order by halts desc, kind
