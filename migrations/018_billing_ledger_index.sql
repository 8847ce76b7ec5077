-- concurrently
-- The ledger: no instance is billed twice for the same period start. It covers only the controller's own rows, because older
-- rows may contain duplicates.
create unique index concurrently if not exists billing_ledger
    on vps_billing_cycles (vps_instance_id, billing_period_start)
    where status in ('billed', 'refunded') and billing_is_ours(metadata);
insert into billing_schema_migrations (name) values ('018_billing_ledger_index') on conflict do nothing;
