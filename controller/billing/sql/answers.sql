-- Queries of the commands that answer questions. They read the functions of migrations 034 and later.

-- name: find
select * from billing_find(%(wanted)s) limit 1000

-- name: instance_debts
select *, extract(epoch from now() - since)::float8 as seconds
from billing_instance_debts(%(organization)s::uuid)
where %(older_than)s::interval is null or since <= now() - %(older_than)s::interval

-- name: lost_debts
select lost_at, deleted_by, organization_id, instance_id, label, reason, since, hours, owed
from billing_lost_debts
where (%(organization)s::uuid is null or organization_id = %(organization)s)
    and (%(older_than)s::interval is null or since <= now() - %(older_than)s::interval)
order by lost_at, id

-- name: organization
select * from billing_organization(%(organization)s)

-- name: instances
select * from billing_instances(%(organization)s, %(default_monthly_price)s)
where %(instance)s::uuid is null or instance_id = %(instance)s
limit %(limit)s

-- name: next_cycle_at
-- If the cycle is overdue or waits for something, its outlook is shown as if it ran now.
select greatest(billing_cycle_due_at(), now()) as as_of

-- name: outlook
select * from billing_outlook(%(organization)s, %(as_of)s, %(default_monthly_price)s, %(currency)s, %(max_backlog_hours)s)
where %(instance)s::uuid is null or instance_id = %(instance)s
limit %(limit)s

-- name: period
-- The database's clock resolves words such as yesterday, in UTC.
select %(from_time)s::timestamptz as from_time, coalesce(%(to_time)s::timestamptz, now()) as to_time

-- name: statement_balance
-- The baseline contains every accepted difference, so differences that were accepted later are subtracted.
select opening - billing_accepted_since(%(organization)s, %(from_time)s) as opening, credits, debits,
    closing - billing_accepted_since(%(organization)s, %(to_time)s) as closing,
    currency, balance_now, expected_now, difference, adopted_at, derived
from billing_statement_balance(%(organization)s, %(from_time)s, %(to_time)s)

-- name: statement
select * from billing_statement(%(organization)s, %(from_time)s, %(to_time)s)
union all
select * from billing_statement_corrections(%(organization)s, %(from_time)s, %(to_time)s)

-- name: runway
select * from billing_runway(%(organization)s::uuid, %(default_monthly_price)s)
where %(within_hours)s::numeric is null or hours_left <= %(within_hours)s

-- name: run
select * from billing_history where id = %(run)s

-- name: run_failures
select * from billing_run_failures(%(run)s)

-- name: names
select * from billing_names(%(ids)s::uuid[])
