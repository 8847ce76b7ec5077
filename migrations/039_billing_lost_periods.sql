-- Billed periods that were deleted although their instance still exists. Deleting an organization also deletes the periods of
-- instances that have moved away since. A gap that such periods have left is no violation.
create table if not exists billing_lost_periods (
    vps_instance_id uuid not null,
    organization_id uuid not null,
    periods tstzmultirange not null,
    lost_at timestamptz not null default now()
);
create index if not exists billing_lost_periods_instance on billing_lost_periods (vps_instance_id);
comment on table billing_lost_periods is 'billed periods that were deleted with an organization, of instances that exist';

-- Runs as its owner, and never prevents the deletion, like billing_keep_lost_debts.
create or replace function billing_keep_lost_periods() returns trigger
language plpgsql security definer as
$$
begin
    insert into billing_lost_periods (vps_instance_id, organization_id, periods)
    select g.vps_instance_id, g.organization_id, range_agg(tstzrange(g.billing_period_start, g.billing_period_end))
    from gone g
    where g.status in ('billed', 'refunded') and billing_is_ours(g.metadata)
        and exists (select from vps_instances i where i.id = g.vps_instance_id)
        and not exists (select from organizations o where o.id = g.organization_id)
    group by g.vps_instance_id, g.organization_id;
    return null;
exception when others then
    raise warning 'billing could not keep lost periods: %', sqlerrm;
    return null;
end
$$;
do $$
begin
    execute format('alter function billing_keep_lost_periods() set search_path = %I, pg_temp', current_schema());
end
$$;
revoke all on function billing_keep_lost_periods() from public;
create or replace trigger billing_keep_lost_periods after delete on vps_billing_cycles
    referencing old table as gone for each statement execute function billing_keep_lost_periods();

-- True if a gap between two own periods of an instance is no violation: the application has moved last_billed_at forward,
-- another program has billed up to the gap's end, or the periods in between were deleted with an organization. Before this
-- migration, nothing recorded which periods were deleted, so an older gap is lawful if any adopted organization was deleted.
create or replace function billing_gap_is_lawful(
    instance_id uuid, gap_start timestamptz, gap_end timestamptz, metadata jsonb
) returns boolean
language sql stable parallel safe as
$$
    select metadata ? 'moved_forward'
        or exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.billing_period_end = gap_end and c.status in ('billed', 'refunded')
                and not billing_is_ours(c.metadata))
        or coalesce(tstzrange(gap_start, gap_end) <@ (
            select range_agg(lost.period)
            from billing_lost_periods l cross join lateral unnest(l.periods) as lost (period)
            where l.vps_instance_id = instance_id), false)
        or gap_end <= (select m.applied_at from billing_schema_migrations m where m.name = '039_billing_lost_periods')
            and exists (
                select from billing_wallet_baselines b
                where not exists (select from organizations o where o.id = b.organization_id))
$$;

insert into billing_schema_migrations (name) values ('039_billing_lost_periods') on conflict do nothing;
