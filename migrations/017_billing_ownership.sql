-- Marks the controller's own rows, and adds the suspended organizations and the leader's interval.

-- True if this controller wrote the row. It knows two markers: 'vps-billing', the only one that is written, and
-- 'containerstacks-billing', which rows from before this migration carry. A later version of the application deletes
-- payments whose metadata contains 'container', so the marker must not contain that word.
-- Partial indexes use this function. It is immutable, uses only operators of pg_catalog, is not strict so that it can be
-- inlined, and must never be replaced: a changed rule needs a function with a new name.
create or replace function billing_is_ours(metadata jsonb) returns boolean
language sql immutable parallel safe as
$$
    select coalesce(
        (metadata operator(pg_catalog.->>) 'controller')
            operator(pg_catalog.=) any (array['vps-billing', 'containerstacks-billing']), false)
$$;

-- Organizations that are excluded from billing, with the reason. A clean audit lifts a suspension by the guard.
create table if not exists billing_suspensions (
    organization_id uuid primary key,
    reason text not null,
    detail text not null,
    suspended_at timestamptz not null default now()
);
comment on column billing_suspensions.reason is 'the invariant that was violated, as `containerstacks-billing audit` names it';

do $$
begin
    if to_regclass('billing_holds') is not null then
        insert into billing_suspensions (organization_id, reason, detail, suspended_at)
        select organization_id, invariant, detail, held_at from billing_holds
        on conflict do nothing;
        drop table billing_holds;
    end if;
end
$$;

-- The schedule follows the leader's interval. A command that reads the schedule may have another setting.
alter table billing_leadership add column if not exists interval_minutes double precision;
comment on column billing_leadership.interval_minutes is 'BILLING_INTERVAL_MINUTES of the leader of this term';

insert into billing_schema_migrations (name) values ('017_billing_ownership') on conflict do nothing;
