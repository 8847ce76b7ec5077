-- The role that the controller runs as, with the least privileges that it works with. Run it as the owner of the
-- application's tables, after `containerstacks-billing migrate` as that owner:
--
--   psql "$OWNER_URL" --file manifests/role.sql
--   psql "$OWNER_URL" --command '\password containerstacks_billing'
--
-- Safe to run again; run it again after an upgrade with migrations. The role can't change the schema: with the chart,
-- give the owner's URL in migrations.existingSecret, or migrate by hand (migrations.mode: none).
\set ON_ERROR_STOP on
begin;

do $$
begin
    if not exists (select from pg_roles where rolname = 'containerstacks_billing') then
        create role containerstacks_billing login nosuperuser nocreatedb nocreaterole noinherit;
    end if;
end
$$;

grant connect on database :"DBNAME" to containerstacks_billing;
grant usage on schema public to containerstacks_billing;

-- Of the application's tables: money moves in by insert and out of a balance, never by delete. To lock a row is to be
-- allowed to update a column of it.
grant select on vps_plans to containerstacks_billing;
grant select, update (id) on organizations to containerstacks_billing; -- locked, never changed
grant select, update (balance, updated_at) on wallets to containerstacks_billing;
grant select, update (last_billed_at) on vps_instances to containerstacks_billing;
grant select, insert on payment_transactions to containerstacks_billing;
grant select, insert, update on vps_billing_cycles to containerstacks_billing;

-- The status table that the application reads. Rows of replicas that are long gone are removed.
grant select, insert, update, delete on billing_daemon_status to containerstacks_billing;
grant usage on sequence billing_daemon_status_id_seq to containerstacks_billing;

-- The controller's own. Terms and baselines are written once; batches too, and removed when they are old.
grant select on billing_schema_migrations to containerstacks_billing;
grant select, update on billing_leadership to containerstacks_billing;
grant select, insert on billing_terms, billing_wallet_baselines to containerstacks_billing;
grant select, insert, delete on billing_batches to containerstacks_billing;
grant select, insert, update on billing_runs to containerstacks_billing;
grant select, insert, delete on billing_holds to containerstacks_billing;
grant select, update on billing_guard to containerstacks_billing;

commit;
