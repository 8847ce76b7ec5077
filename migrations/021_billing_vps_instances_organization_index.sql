-- concurrently
-- unless indexed: vps_instances (organization_id)
-- Batches read ranges of organizations. The application usually has this index already, and `migrate` then skips this one;
-- `psql -f` creates it in any case.
create index concurrently if not exists billing_vps_instances_organization on vps_instances (organization_id);
insert into billing_schema_migrations (name) values ('021_billing_vps_instances_organization_index') on conflict do nothing;
