-- Backlog: an instance with many hours that no one has billed or recorded is not charged until an operator has decided. Usually
-- nothing billed it for a long time before the controller came.

-- What operators have accepted: hours until accepted_until may be charged. A null organization means all of them.
create table if not exists billing_accepted_backlogs (
    id bigint generated always as identity primary key,
    accepted_until timestamptz not null default clock_timestamp(),
    accepted_by text not null,
    reason text not null,
    organization_id uuid,
    instances bigint not null,
    owed numeric not null
);
create index if not exists billing_accepted_backlogs_organization on billing_accepted_backlogs (organization_id, accepted_until);
comment on column billing_accepted_backlogs.instances is 'in backlog when it was accepted, by their open rows';

-- The latest time since which hours may be unrecorded without being a backlog. The hours before the start of the last successful
-- cycle count, because that cycle should have charged or recorded them. Before the first successful cycle all hours count. Null if
-- there is no limit.
create or replace function billing_backlog_edge(as_of timestamptz, max_hours integer) returns timestamptz
language sql stable as
$$
    select coalesce((
        select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome)
    ), as_of) - (max_hours + 1) * interval '1 hour'
$$;

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
            where (a.organization_id = billing_in_backlog.organization_id or a.organization_id is null) and a.accepted_until > edge)
$$;

-- The instances in backlog, the longest first, with what their open rows say, unless all of that is accepted. Without an argument it reads every open row.
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
        where (a.organization_id = i.organization_id or a.organization_id is null) and a.accepted_until >= open.ends_at)
    order by open.since, i.id
$$;
create or replace view billing_backlogs as select * from billing_backlogs();

-- Instances with more than min_hours that are neither billed nor recorded, the most hours first: what a cycle at as_of would charge
-- or, in backlog, not charge. `found` counts all of them.
create or replace function billing_unrecorded(
    as_of timestamptz, min_hours integer, max_hours integer, default_monthly_price numeric, listed integer
)
returns table (
    organization_id uuid, instance_id uuid, label text, since timestamptz, hours bigint, amount numeric,
    in_backlog boolean, found bigint
)
language sql stable as
$$
    select w.organization_id, w.id, w.label, w.since, w.hours, (
            select sum(case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) end)
            from billing_segments(array[w.id], as_of, default_monthly_price) s where s.starts_at >= w.since),
        coalesce(billing_in_backlog(w.id, w.organization_id, w.starts_at, billing_backlog_edge(as_of, max_hours)), false), w.found
    from (
        select i.id, i.organization_id, i.label, p.starts_at, r.since, billing_whole_hours(r.since, as_of) as hours, count(*) over () as found
        from vps_instances i
        cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) p
        cross join lateral (
            select greatest(p.starts_at, max(c.billing_period_end)) as since
            from vps_billing_cycles c
            where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata) and not c.metadata ? 'backlog'
        ) r
        where billing_due(i.last_billed_at, i.created_at, as_of) and billing_is_moment(p.starts_at)
            and coalesce(i.last_billed_at, i.created_at) < as_of - min_hours * interval '1 hour'
            and billing_whole_hours(r.since, as_of) > min_hours
        order by hours desc, i.id
        limit listed
    ) w
    order by w.hours desc, w.id
$$;

-- billing_outlook of migration 034 with the limit of the backlog: what a cycle at as_of would do with one organization.
drop function if exists billing_outlook(uuid, timestamptz, numeric, text);
create or replace function billing_outlook(
    of_organization uuid, as_of timestamptz, default_monthly_price numeric, wanted_currency text, max_backlog_hours integer
)
returns table (
    instance_id uuid, starts_at timestamptz, hours bigint, monthly_price numeric, price_source text, recorded boolean,
    cost numeric, failure_reason text, paid_hours bigint, amount numeric
)
language sql stable as
$$
    with due as materialized (
        select i.id, coalesce(i.created_at, 'infinity') as created_at
        from vps_instances i
        where i.organization_id = of_organization and billing_due(i.last_billed_at, i.created_at, as_of)
    ), priced as materialized (
        select due.created_at, s.*, min(s.starts_at) over (partition by s.instance_id) as billed_until
        from billing_segments(array(select due.id from due), as_of, default_monthly_price) s
        join due on due.id = s.instance_id
    ), segment as materialized (
        select s.*, o.balance,
            min(coalesce(
                billing_failure_reason(o.suspended, nullif(o.wallets, 0), o.balance, o.currency, wanted_currency, s.start_known,
                    s.hours, s.monthly_price),
                case when billing_in_backlog(s.instance_id, of_organization, s.billed_until, billing_backlog_edge(as_of, max_backlog_hours))
                    then 'backlog' end)) over (partition by s.instance_id) as failure_reason
        from priced s
        cross join billing_organization(of_organization) o
    ), allotted as (
        select a.instance_id, a.starts_at, a.paid_hours
        from (
            select array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at) as ids,
                array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at) as starts,
                billing_affordable_segments(min(s.balance),
                    array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.monthly_price order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.hours order by s.created_at, s.instance_id, s.starts_at)) as affordable
            from segment s
            where s.failure_reason is null
        ) payable
        cross join lateral unnest(payable.ids, payable.starts, payable.affordable) as a (instance_id, starts_at, paid_hours)
    )
    select s.instance_id, s.starts_at, s.hours, s.monthly_price, s.price_source, s.row_id is not null,
        case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) end,
        s.failure_reason, coalesce(a.paid_hours, 0),
        case when a.paid_hours > 0 then billing_charge(s.monthly_price, s.starts_at, a.paid_hours) else 0.00 end
    from segment s
    left join allotted a on a.instance_id = s.instance_id and a.starts_at = s.starts_at
    order by s.created_at, s.instance_id, s.starts_at
$$;

insert into billing_schema_migrations (name) values ('041_billing_backlog') on conflict do nothing;
