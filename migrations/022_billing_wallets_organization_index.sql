-- concurrently
-- unless indexed: wallets (organization_id)
-- Batches read ranges of organizations. The application usually has this index already, and `migrate` then skips this one;
-- `psql -f` creates it in any case.
create index concurrently if not exists billing_wallets_organization on wallets (organization_id);
insert into billing_schema_migrations (name) values ('022_billing_wallets_organization_index') on conflict do nothing;
