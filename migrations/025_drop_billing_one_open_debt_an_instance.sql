-- concurrently
-- billing_open_rows replaces it.
drop index concurrently if exists billing_one_open_debt_an_instance;
insert into billing_schema_migrations (name) values ('025_drop_billing_one_open_debt_an_instance') on conflict do nothing;
