-- Operators' commands. Migration 045 says what the columns of billing_commands mean.

-- name: give_command
insert into billing_commands (command, given_by, reason, term, until, organization_id, instance_id)
select %(command)s, %(given_by)s || ' (role ' || current_user || ')', %(reason)s, l.term,
    coalesce(%(until)s::timestamptz, clock_timestamp() + %(for_seconds)s::float8 * interval '1 second'),
    %(organization_id)s::uuid, %(instance_id)s::uuid
from billing_leadership l
returning id

-- name: command
select c.id, c.command, c.given_at, c.given_by, c.reason, c.until, c.acknowledged_at, c.acknowledged_by, c.finished_at, c.run_id,
    c.refusal, (select min(r.instance_id) from billing_replicas() r where r.role = 'leader') as leader
from billing_commands c
where c.id = %(id)s

-- name: acknowledge_commands
-- Needs the fence, so the holder is this replica. A pause is finished once no batch is in hand. Most other commands take effect
-- when they are given, and the leader has only to read them.
update billing_commands c
set acknowledged_at = coalesce(c.acknowledged_at, clock_timestamp()), acknowledged_by = l.holder,
    finished_at = case
        when c.command in ('resume', 'suspend', 'unsuspend') or (c.command = 'pause' and %(between_cycles)s) then clock_timestamp() end
from billing_leadership l
where c.finished_at is null and (c.acknowledged_at is null or (c.command = 'pause' and %(between_cycles)s))
