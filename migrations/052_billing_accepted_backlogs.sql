-- An acceptance covers the instances that were in backlog when it was given, and no others: an instance that is restored a minute
-- later with a year of unbilled hours is not charged. Acceptances from before this migration name no instance. They stay as a record, and
-- cover nothing.

alter table billing_accepted_backlogs
    add column if not exists instance_id uuid,
    add column if not exists accepted_from timestamptz,
    alter column instances drop not null;
drop index if exists billing_accepted_backlogs_organization;
create index if not exists billing_accepted_backlogs_instance on billing_accepted_backlogs (instance_id, accepted_until);
comment on column billing_accepted_backlogs.instances is 'how many were accepted at once; null in a row that names its instance';
comment on column billing_accepted_backlogs.accepted_from is 'the start of the instance''s oldest open row; earlier hours are not accepted';
comment on column billing_accepted_backlogs.owed is 'what its open rows said it cost';

-- True if an instance that is billed until starts_at is in backlog: it has unrecorded hours from the edge or earlier, and no one
-- has accepted them. Open rows record hours, except those that were written as backlog.
create or replace function billing_in_backlog(instance_id uuid, organization_id uuid, starts_at timestamptz, edge timestamptz)
returns boolean
language sql stable as
$$
    select coalesce(starts_at <= edge, false)
        and not exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.status = 'failed' and billing_is_ours(c.metadata)
                and not c.metadata ? 'backlog' and c.billing_period_end > edge)
        and not exists (
            select from billing_accepted_backlogs a
            where a.instance_id = billing_in_backlog.instance_id and a.organization_id = billing_in_backlog.organization_id
                and a.accepted_from <= starts_at and a.accepted_until > edge)
$$;

-- The instances in backlog, the longest first, with what their open rows say, unless all of that is accepted. Without an argument it
-- reads every open row.
create or replace function billing_backlogs(of_organization uuid default null)
returns table (
    organization_id uuid, instance_id uuid, label text, hours bigint, owed numeric, since timestamptz
)
language sql stable as
$$
    select i.organization_id, i.id, i.label, open.hours, open.owed, open.since
    from (
        select c.vps_instance_id, sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            sum(billing_owed(c.metadata, c.total_amount)) as owed, min(c.billing_period_start) as since, max(c.billing_period_end) as ends_at
        from vps_billing_cycles c
        where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ? 'backlog'
            and (of_organization is null or c.organization_id = of_organization)
        group by c.vps_instance_id
    ) open
    join vps_instances i on i.id = open.vps_instance_id
    where not exists (
        select from billing_accepted_backlogs a
        where a.instance_id = i.id and a.organization_id = i.organization_id and a.accepted_from <= open.since
            and a.accepted_until >= open.ends_at)
    order by open.since, i.id
$$;

-- The instances whose hours an operator can accept now, the longest backlog first: those that cycles have recorded, and those that the
-- next cycle would record. starts_at is where an acceptance has to begin, because debts may come before the backlog.
create or replace function billing_acceptable_backlogs(of_organization uuid, max_backlog_hours integer, default_monthly_price numeric)
returns table (
    organization_id uuid, instance_id uuid, label text, hours bigint, owed numeric, since timestamptz, starts_at timestamptz
)
language sql stable as
$$
    select b.*, coalesce((
        select min(c.billing_period_start) from vps_billing_cycles c
        where c.vps_instance_id = b.instance_id and c.status = 'failed' and billing_is_ours(c.metadata)), b.since)
    from (
        select * from billing_backlogs(of_organization)
        union all
        select u.organization_id, u.instance_id, u.label, u.hours, coalesce(u.amount, 0.00), u.since
        from billing_unrecorded(now(), max_backlog_hours, max_backlog_hours, default_monthly_price, null) u
        where u.in_backlog and (of_organization is null or u.organization_id = of_organization)
            and not exists (select from billing_backlogs(u.organization_id) r where r.instance_id = u.instance_id)
    ) b
    order by b.since, b.instance_id
$$;

insert into billing_schema_migrations (name) values ('052_billing_accepted_backlogs') on conflict do nothing;
