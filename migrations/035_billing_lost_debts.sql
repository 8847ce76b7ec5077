-- Debts that were written off because their instance or organization was deleted. The deletion also deletes the open rows, so a
-- trigger keeps a record of them. The trigger never prevents the deletion.
create table if not exists billing_lost_debts (
    id bigint generated always as identity primary key,
    lost_at timestamptz not null default now(),
    deleted_by text not null default session_user,
    organization_id uuid not null,
    instance_id uuid not null,
    label text,
    reason text,
    since timestamptz not null,
    hours bigint not null,
    owed numeric not null
);
create index if not exists billing_lost_debts_organization on billing_lost_debts (organization_id);
comment on table billing_lost_debts is 'open rows that were deleted together with their instance or organization';

-- The controller deletes open rows too, but only those of instances that exist, and these are not recorded. The function runs
-- as its owner, because the role that deletes may have no rights on the table above.
create or replace function billing_keep_lost_debts() returns trigger
language plpgsql security definer as
$$
begin
    insert into billing_lost_debts (organization_id, instance_id, label, reason, since, hours, owed)
    select g.organization_id, g.vps_instance_id, min(g.metadata ->> 'vps_label'), min(g.metadata ->> 'reason'),
        min(g.billing_period_start), sum(billing_whole_hours(g.billing_period_start, g.billing_period_end)),
        sum(billing_owed(g.metadata, g.total_amount))
    from gone g
    where g.status = 'failed' and billing_is_ours(g.metadata)
        and (not exists (select from vps_instances i where i.id = g.vps_instance_id)
            or not exists (select from organizations o where o.id = g.organization_id))
    group by g.organization_id, g.vps_instance_id;
    return null;
exception when others then
    raise warning 'billing could not keep a lost debt: %', sqlerrm;
    return null;
end
$$;
do $$
begin
    execute format('alter function billing_keep_lost_debts() set search_path = %I, pg_temp', current_schema());
end
$$;
revoke all on function billing_keep_lost_debts() from public;
create or replace trigger billing_keep_lost_debts after delete on vps_billing_cycles
    referencing old table as gone for each statement execute function billing_keep_lost_debts();

insert into billing_schema_migrations (name) values ('035_billing_lost_debts') on conflict do nothing;
