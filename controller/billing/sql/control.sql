-- Operators' commands. Migration 042 says what the columns of billing_commands mean.

-- name: give_command
insert into billing_commands (command, given_by, reason, term, until, organization_id, instance_id)
select %(command)s, %(given_by)s || ' (role ' || current_user || ')', %(reason)s, l.term,
    coalesce(%(until)s::timestamptz, clock_timestamp() + %(for_seconds)s::float8 * interval '1 second'),
    %(organization_id)s::uuid, %(instance_id)s::uuid
from billing_leadership l
returning id

-- name: suspend
-- Replaces an earlier suspension by an operator.
insert into billing_suspensions (organization_id, kind, reason, detail, until)
select c.organization_id, 'operator', c.reason, 'by ' || c.given_by, c.until from billing_commands c where c.id = %(id)s

-- name: unsuspend
delete from billing_suspensions where organization_id = %(organization_id)s and kind = 'operator'
returning reason, detail, until

-- name: until
-- An instant as ISO 8601, in UTC unless it has an offset.
select %(text)s::timestamptz as until, %(text)s::timestamptz > clock_timestamp() as ahead

-- name: command
select c.id, c.command, c.given_at, c.given_by, c.reason, c.until, c.acknowledged_at, c.acknowledged_by, c.finished_at, c.run_id,
    c.refusal, (select r.outcome from billing_runs r where r.id = c.run_id) as outcome,
    (select min(r.instance_id) from billing_replicas() r where r.role = 'leader') as leader
from billing_commands c
where c.id = %(id)s

-- name: answer_commands
-- Needs the fence, so the holder is this replica. A command that takes effect when it is given is finished once the leader has read
-- it; a pause, once no batch is in hand. take_triggers, take_step_down and finish_command finish the others.
with answered as (
    select c.id, l.holder, refused.reason as refusal,
        c.command in ('resume', 'suspend', 'unsuspend') or (c.command = 'pause' and %(between_cycles)s) as done
    from billing_leadership l
    cross join billing_commands c
    cross join lateral (
        select case when %(between_cycles)s or c.command <> 'step-down' then billing_refusal(c.command, c.term) end as reason
    ) refused
    where c.finished_at is null
)
update billing_commands c
set acknowledged_at = coalesce(c.acknowledged_at, clock_timestamp()), acknowledged_by = a.holder, refusal = a.refusal,
    finished_at = case when a.done or a.refusal is not null then clock_timestamp() end
from answered a
where c.id = a.id and (c.acknowledged_at is null or a.done or a.refusal is not null)

-- name: command_waits
select exists (select from billing_commands where finished_at is null and command in ('trigger', 'step-down', 'waive')) as waits

-- name: take_triggers
-- Needs the fence. This run answers every open trigger, even one that the leader has not read yet.
update billing_commands c
set run_id = %(run_id)s, finished_at = clock_timestamp(), acknowledged_at = coalesce(c.acknowledged_at, clock_timestamp()),
    acknowledged_by = l.holder
from billing_leadership l
where c.command = 'trigger' and c.finished_at is null

-- name: take_step_down
-- Needs the fence. answer_commands has refused those that this leader doesn't carry out. A command of this term that is finished
-- already counts too: if the answer to the COMMIT was lost, this replica still leads and must still step down.
update billing_commands c set finished_at = coalesce(c.finished_at, clock_timestamp())
from billing_leadership l
where c.command = 'step-down' and c.term = l.term and c.acknowledged_at is not null and c.refusal is null
returning c.given_by, c.reason
