-- The reckoning of the fast path, so that the statement which charges is short enough to read.

-- What each due instance of a range of organizations costs, in the global order. amount is null unless the fast path can charge
-- the instance: it has one price for all hours, no open row and no backlog, and the ledger is not ahead of last_billed_at. The
-- body is one query, so the planner makes it part of the statement that calls it.
create or replace function billing_reckon_covered(first_organization uuid, last_organization uuid, after_created_at timestamptz,
    after_id uuid, as_of timestamptz, max_backlog_hours integer, batch_size bigint)
returns table (id uuid, organization_id uuid, label text, created_at timestamptz, last_billed_at timestamptz,
    period_start timestamptz, hours bigint, monthly_price numeric, price_source text, moved_forward boolean, amount numeric)
language sql stable as
$$
    with due as materialized (
        select id, organization_id, plan_id, label, coalesce(created_at, 'infinity') as created_at, last_billed_at,
            coalesce(last_billed_at, created_at) as period_start
        from vps_instances
        where organization_id between first_organization and last_organization
            and billing_due(last_billed_at, created_at, as_of)
            and (after_id is null
                or (coalesce(created_at, 'infinity'), id) > (after_created_at, after_id))
        order by organization_id, coalesce(created_at, 'infinity'), id
        limit batch_size
    ), indebted as materialized (
        select vps_instance_id from vps_billing_cycles
        where vps_instance_id = any (array(select id from due)) and status = 'failed' and billing_is_ours(metadata)
    ), backlog as materialized (
        select billing_backlog_edge(as_of, max_backlog_hours) as edge
    ), price as materialized (
        select key, monthly_price, source, valid_from from billing_price_history() where valid_to = 'infinity'
    )
    -- `is not true` keeps the planner from making a join of `in`, because it can't estimate the size of that join
    select due.id, due.organization_id, due.label, due.created_at, due.last_billed_at, due.period_start, counted.hours,
        p.monthly_price, p.source as price_source, position.ledger_end < due.period_start as moved_forward,
        case when billing_is_price(p.monthly_price) and p.valid_from <= due.period_start and counted.hours is not null
                and (position.ledger_end > due.period_start) is not true
                and (due.id in (select vps_instance_id from indebted)) is not true
                and (due.period_start <= (select edge from backlog)) is not true
            then billing_charge(p.monthly_price, due.period_start, counted.hours) end as amount
    from due
    cross join lateral (
        select case when billing_is_moment(due.period_start) then billing_whole_hours(due.period_start, as_of) end as hours
    ) counted
    cross join lateral billing_position(due.id, due.last_billed_at, due.created_at) position
    left join price p on p.key = due.plan_id
$$;

insert into billing_schema_migrations (name) values ('051_billing_covered') on conflict do nothing;
