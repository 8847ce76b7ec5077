-- What the operator's page shows beside the status. Names are only for people to read.

-- name: last_day
select * from billing_last_day()

-- name: uncharged
-- The organizations that have waited longest for each reason, and the totals of the reason.
select * from (
    select u.*, count(*) over reasons as all_organizations, sum(u.instances) over reasons as all_instances,
        sum(u.owed) over reasons as all_owed, row_number() over (partition by u.reason order by u.since, u.organization_id) as place
    from billing_uncharged() u
    window reasons as (partition by u.reason)
) ranked
where place <= %(limit)s
order by reason, place

-- name: suspensions
select s.organization_id, o.name as organization, o.slug, s.kind, s.reason, s.detail, s.suspended_at, s.until,
    count(*) over () as all_organizations
from billing_suspensions s
left join organizations o on o.id = s.organization_id
where s.until is null or s.until > now()
order by s.suspended_at desc, s.organization_id
limit %(limit)s
