-- concurrently
-- Debts by organization. Every 30 seconds the leader looks for wallets that can pay since a top-up.
create index concurrently if not exists billing_payable_debts
    on vps_billing_cycles (organization_id, hourly_rate)
    where status = 'failed' and billing_is_ours(metadata) and metadata ->> 'reason' = 'insufficient_balance';
insert into billing_schema_migrations (name) values ('045_billing_payable_debts_index') on conflict do nothing;
