-- concurrently
-- Periods that another program billed. The leader reads the newest ones every 30 seconds.
create index concurrently if not exists billing_foreign_periods_created_at
    on vps_billing_cycles (created_at)
    where status = 'billed' and not billing_is_ours(metadata);
insert into billing_schema_migrations (name) values ('031_billing_foreign_periods_index') on conflict do nothing;
