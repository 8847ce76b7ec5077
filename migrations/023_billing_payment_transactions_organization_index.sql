-- concurrently
-- unless indexed: payment_transactions (organization_id)
-- Batches read ranges of organizations. The application usually has this index already, and `migrate` then skips this one;
-- `psql -f` creates it in any case.
create index concurrently if not exists billing_payment_transactions_organization on payment_transactions (organization_id);
insert into billing_schema_migrations (name) values ('023_billing_payment_transactions_organization_index') on conflict do nothing;
