-- What `status`, the status page and the metrics show, from the views of migrations 028 and 032.

-- name: status
-- While billing is halted, the end of the heartbeats is infinite, which Python can't represent.
select s.*,
    (select count(*) from billing_suspensions o where o.kind = 'operator' and (o.until is null or o.until > now())) as suspended_by_operators,
    (select u from billing_beats_until() u where isfinite(u)) as beats_until,
    coalesce((select l.interval_minutes from billing_leadership l), 60) as interval_minutes,
    (select count(*) from billing_backlogs()) as backlogs, (select coalesce(sum(b.owed), 0) from billing_backlogs() b) as backlog,
    (select count(*) from billing_wallet_differences) as differing_wallets,
    (select coalesce(sum(abs(d.difference)), 0) from billing_wallet_differences d) as difference,
    coalesce((
        select jsonb_agg(jsonb_build_object('instance_id', r.instance_id, 'role', r.role,
            'since', case when r.role = 'leader' then s.leading_since else r.connected_at end) order by r.role, r.connected_at)
        from billing_replicas() r), '[]') as replicas
from billing_status s

-- name: history
select * from billing_history limit %(limit)s
