-- Creates the role that the controller runs as, with the least privileges it needs. Run it as the owner of the
-- application's tables, after that owner has run `containerstacks-billing migrate`:
--
--   psql "$OWNER_URL" --file manifests/role.sql
--   psql "$OWNER_URL" --command '\password containerstacks_billing'
--
-- The owner needs CREATEROLE to create the role. Without it, let a superuser run `create role containerstacks_billing login`
-- first. If the application protects tables with row-level security, the script lets the role see every row: with BYPASSRLS if
-- the owner may grant it, otherwise with a policy for each table. If a restrictive policy prevents that, the script stops with
-- an error.
--
-- The script is safe to repeat. Run it again after every upgrade that brings migrations. The role can't change the
-- schema: with the chart, put the owner's URL in migrations.existingSecret, or migrate by hand (migrations.mode: none).
\set ON_ERROR_STOP on
begin;

do $$
begin
    if not exists (select from pg_roles where rolname = 'containerstacks_billing') then
        create role containerstacks_billing login nosuperuser nocreatedb nocreaterole noinherit;
    end if;
exception when insufficient_privilege then
    raise exception 'role % may not create roles: let a superuser run `create role containerstacks_billing login`, and run this again',
        current_user;
end
$$;

do $$
declare
    protected regclass[] := array(
        select c.oid from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relrowsecurity and c.relname in ('organizations', 'wallets',
            'vps_plans', 'vps_instances', 'payment_transactions', 'vps_billing_cycles', 'billing_daemon_status'));
    name regclass;
    policies text;
begin
    if protected = '{}' or (select rolbypassrls from pg_roles where rolname = 'containerstacks_billing') then
        return;
    end if;
    begin
        alter role containerstacks_billing bypassrls;
        return;
    exception when insufficient_privilege then
        null; -- a policy does it too
    end;
    foreach name in array protected loop
        select string_agg(polname, ', ') into policies from pg_policy where polrelid = name and not polpermissive;
        if policies is not null then
            raise exception '% has restrictive policies (%): let a superuser run `alter role containerstacks_billing bypassrls`',
                name, policies;
        end if;
        if not exists (select from pg_policy where polrelid = name and polname = 'containerstacks_billing') then
            execute format(
                'create policy containerstacks_billing on %s to containerstacks_billing using (true) with check (true)', name);
        end if;
    end loop;
end
$$;

grant connect on database :"DBNAME" to containerstacks_billing;
grant usage on schema public to containerstacks_billing;

-- The application's tables. The controller inserts payments and lowers balances. It deletes only rows that it wrote itself, and
-- only open ones. Locking a row needs the right to update at least one of its columns.
grant select on vps_plans to containerstacks_billing;
grant select, update (id) on organizations to containerstacks_billing; -- to lock rows, never to change them
grant select, update (balance, updated_at) on wallets to containerstacks_billing;
grant select, update (last_billed_at) on vps_instances to containerstacks_billing;
grant select, insert, update (metadata) on payment_transactions to containerstacks_billing;
grant select, insert, update, delete on vps_billing_cycles to containerstacks_billing;

-- The status table that the application reads. The controller deletes the rows of replicas that stopped long ago.
grant select, insert, update, delete on billing_daemon_status to containerstacks_billing;
grant usage on sequence billing_daemon_status_id_seq to containerstacks_billing;

-- The controller's own tables. Terms are never changed. Batches are deleted once they are old, suspensions once the
-- organization's audit is clean, and wallet differences once they are gone.
grant select on billing_schema_migrations to containerstacks_billing;
grant select, update on billing_leadership to containerstacks_billing;
grant select, insert on billing_terms, billing_corrections, billing_accepted_backlogs to containerstacks_billing;
grant select, insert, update on billing_wallet_baselines to containerstacks_billing;
grant select, insert, update, delete on billing_wallet_differences to containerstacks_billing;
grant select, insert, delete on billing_batches to containerstacks_billing;
grant select, insert, update on billing_runs to containerstacks_billing;
grant select, update on billing_guard to containerstacks_billing;
grant select, insert, delete on billing_suspensions to containerstacks_billing;
grant select, insert, update on billing_prices, billing_price_check to containerstacks_billing;
grant select, insert, update, delete on billing_daemon_sightings to containerstacks_billing;
grant select, insert, delete on billing_foreign_periods to containerstacks_billing;
grant select, insert, update on billing_commands to containerstacks_billing;

-- Read by the commands, the status page and the metrics. A trigger that runs as the owner writes billing_lost_debts.
grant select on billing_lost_debts, billing_lost_periods, billing_instance_debts to containerstacks_billing;
grant select on billing_status, billing_replicas, billing_debts, billing_failures, billing_history, billing_notices, billing_backlogs,
    billing_last_day, billing_uncharged, billing_alert_facts
    to containerstacks_billing;

commit;
