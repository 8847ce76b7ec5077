-- What `status`, the status page and the metrics show, from the views of migrations 028 and 032.

-- name: status
-- While billing is halted, the end of the heartbeats is infinite, which Python can't represent.
select s.*, facts.*,
    (select count(*) from billing_suspensions o where o.kind = 'operator' and (o.until is null or o.until > now())) as suspended_by_operators,
    (select u from billing_beats_until() u where isfinite(u)) as beats_until,
    coalesce((select l.interval_minutes from billing_leadership l), 60) as interval_minutes,
    backlog.backlogs, backlog.backlog, differing.differing_wallets, differing.difference,
    coalesce((
        select jsonb_agg(jsonb_build_object('instance_id', r.instance_id, 'role', r.role,
            'since', case when r.role = 'leader' then s.leading_since else r.connected_at end) order by r.role, r.connected_at)
        from billing_replicas() r), '[]') as replicas
from billing_status s
cross join (select count(*) as backlogs, coalesce(sum(b.owed), 0) as backlog from billing_backlogs() b) backlog
cross join (
    select count(*) as differing_wallets, coalesce(sum(abs(d.difference)), 0) as difference from billing_wallet_differences d
) differing
cross join billing_alert_facts facts

-- name: history
select * from billing_history limit %(limit)s
