-- concurrently
-- Open rows: hours that are recorded as debt or failure and not paid.
create unique index concurrently if not exists billing_open_rows
    on vps_billing_cycles (vps_instance_id, billing_period_start)
    where status = 'failed' and billing_is_ours(metadata);
insert into billing_schema_migrations (name) values ('019_billing_open_rows_index') on conflict do nothing;
