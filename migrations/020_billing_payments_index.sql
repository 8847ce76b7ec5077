-- concurrently
-- The controller's own payments in the order of their time-ordered ids. The guard reads them in this order.
create index concurrently if not exists billing_payments
    on payment_transactions (id)
    where billing_is_ours(metadata);
insert into billing_schema_migrations (name) values ('020_billing_payments_index') on conflict do nothing;
