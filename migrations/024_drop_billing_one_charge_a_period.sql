-- concurrently
-- billing_ledger replaces it.
drop index concurrently if exists billing_one_charge_a_period;
insert into billing_schema_migrations (name) values ('024_drop_billing_one_charge_a_period') on conflict do nothing;
