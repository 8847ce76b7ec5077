-- Backlog: instances with many unrecorded hours. Migration 041 says which ones these are.

-- name: instance_beyond_backlog
-- An instance that is billed until after the edge can't be in backlog, so it can be charged now or once it is due.
select exists (
    select from vps_instances i
    where coalesce(i.last_billed_at, i.created_at) < 'infinity'
        and (coalesce(i.last_billed_at, i.created_at) <= billing_backlog_edge(now(), %(max_backlog_hours)s)) is not true
) as found

-- name: largest_charges
-- What this transaction has charged, by instance. The ids of its payments are no older than the transaction.
select c.instance_id, i.label, o.slug, c.hours, c.amount
from (
    select (t.metadata ->> 'vps_instance_id')::uuid as instance_id, sum((t.metadata ->> 'hours')::bigint)::bigint as hours,
        -sum(t.amount) as amount
    from payment_transactions t
    where t.id >= (lpad(to_hex(floor(extract(epoch from now()) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
        and billing_is_ours(t.metadata) and t.created_at >= now()
    group by 1
    order by 3 desc, 1
    limit %(number)s
) c
join vps_instances i on i.id = c.instance_id
join organizations o on o.id = i.organization_id
order by c.amount desc, c.instance_id

-- name: unrecorded
select u.*, o.slug
from billing_unrecorded(now(), %(min_hours)s, %(max_backlog_hours)s, %(default_monthly_price)s, %(limit)s) u
join organizations o on o.id = u.organization_id
order by u.hours desc, u.instance_id

-- name: backlogs
select b.organization_id, b.instance_id, b.label, b.hours, b.owed, b.since, o.slug
from billing_acceptable_backlogs(%(organization)s::uuid, %(max_backlog_hours)s, %(default_monthly_price)s) b
join organizations o on o.id = b.organization_id
order by b.since, b.instance_id

-- name: accept_backlog
-- Accepts nothing unless the number of instances in backlog is the expected one, because the operator has seen no others.
with backlog as materialized (
    select b.*, count(*) over () as instances
    from billing_acceptable_backlogs(%(organization)s::uuid, %(max_backlog_hours)s, %(default_monthly_price)s) b
), accepted as (
    insert into billing_accepted_backlogs
        (accepted_until, accepted_by, reason, organization_id, instance_id, accepted_from, owed)
    select now(), %(accepted_by)s || ' (role ' || current_user || ')', %(reason)s, b.organization_id, b.instance_id, b.starts_at, b.owed
    from backlog b
    where b.instances = coalesce(%(expected)s::bigint, b.instances)
    returning owed
)
select now() as accepted_until, (select count(*) from backlog) as found, count(*) as instances, coalesce(sum(owed), 0.00) as owed
from accepted
