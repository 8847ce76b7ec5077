-- Runs that are no cycles: collections, and waivers, which write off hours. The schedule and the heartbeat read cycles alone.

alter table billing_runs drop constraint if exists billing_runs_kind_check;
alter table billing_runs add constraint billing_runs_kind_check check (kind in ('cycle', 'collection', 'waiver'));
comment on column billing_runs.kind is
    'cycle: charges everything due; collection: collects debts between two cycles; waiver: writes off hours on an operator''s command';

-- The amount that an operator has waived of a billed period; 0 for others.
create or replace function billing_waived(metadata jsonb) returns numeric
language sql immutable parallel safe as
$$
    select case when jsonb_typeof(metadata -> 'waived' -> 'amount') = 'number'
        then (metadata -> 'waived' ->> 'amount')::numeric else 0 end
$$;

insert into billing_schema_migrations (name) values ('044_billing_waivers') on conflict do nothing;
