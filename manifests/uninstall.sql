-- Removes containerstacks-billing from the database. Stop every replica first, then run it as the owner of the tables:
--
--   psql "$OWNER_URL" --file manifests/uninstall.sql
--
-- It refuses while a controller leads, or has written a heartbeat in the last 3 minutes. It removes the controller's own tables,
-- views, functions and indexes, and its rows of billing_daemon_status, so that the application's built-in billing starts within
-- the hour. It leaves what the application uses: the table billing_daemon_status, the types of all columns, and every payment
-- and period. Hours that are recorded as owed stay due, because last_billed_at is still before them.
\set ON_ERROR_STOP on
begin;
set local lock_timeout = '10s';

do $$
declare
    name text;
    signature text;
    triggers text[];
    indexes text[];
    views text[];
    tables text[];
    functions text[];
begin
    if to_regclass('billing_leadership') is null then
        raise exception 'containerstacks-billing is not installed in schema %', current_schema();
    end if;
    -- from here on no replica can become leader
    lock table billing_leadership in access exclusive mode;
    if exists (
        select from pg_locks l cross join billing_leadership b
        where l.locktype = 'advisory' and l.granted and l.database = (select oid from pg_database where datname = current_database())
            and (l.objsubid = 2 and l.classid = 6517602 and l.objid = to_regclass('vps_instances')::oid
                or l.objsubid = 1 and (l.classid::bigint << 32 | l.objid::bigint) = billing_lock_key(b.lock_name))
    ) then
        raise exception 'a controller holds the lock: stop every replica first';
    end if;
    if exists (
        select from billing_daemon_status
        where billing_is_our_status(metadata) and heartbeat_at > clock_timestamp() - interval '3 minutes'
            and status <> 'stopped'
    ) then
        raise exception 'a controller wrote a heartbeat in the last 3 minutes: stop every replica, and wait';
    end if;
    delete from billing_daemon_status where billing_is_our_status(metadata);

    -- Lists from migrations/schema.sql. `make schema` writes them.
    triggers := array[
        'billing_keep_lost_debts vps_billing_cycles', 'billing_keep_lost_periods vps_billing_cycles'
    ];
    indexes := array[
        'billing_foreign_periods_created_at', 'billing_ledger', 'billing_open_rows', 'billing_payable_debts',
        'billing_payment_transactions_organization', 'billing_payments', 'billing_vps_instances_organization',
        'billing_wallets_organization'
    ];
    views := array[
        'billing_alert_facts', 'billing_backlogs', 'billing_debts', 'billing_failures', 'billing_history',
        'billing_instance_debts', 'billing_last_day', 'billing_notices', 'billing_replicas', 'billing_status',
        'billing_uncharged'
    ];
    tables := array[
        'billing_accepted_backlogs', 'billing_batches', 'billing_commands', 'billing_corrections',
        'billing_daemon_sightings', 'billing_foreign_periods', 'billing_guard', 'billing_leadership', 'billing_lost_debts',
        'billing_lost_periods', 'billing_price_check', 'billing_prices', 'billing_runs', 'billing_schema_migrations',
        'billing_suspensions', 'billing_terms', 'billing_wallet_baselines', 'billing_wallet_differences'
    ];
    functions := array[
        'billing_acceptable_backlogs', 'billing_accepted_since', 'billing_affordable_segments', 'billing_alert_facts',
        'billing_backlog_edge', 'billing_backlogs', 'billing_beats_until', 'billing_charge', 'billing_charge_description',
        'billing_contend', 'billing_cycle_due_at', 'billing_debts', 'billing_difference_candidates', 'billing_due',
        'billing_epoch_microseconds', 'billing_explain_difference', 'billing_failed_before', 'billing_failure_reason',
        'billing_failures', 'billing_find', 'billing_gap_is_lawful', 'billing_got_through', 'billing_hours_until',
        'billing_in_backlog', 'billing_instance_debts', 'billing_instances', 'billing_is_lawful_gap', 'billing_is_moment',
        'billing_is_of_wallet', 'billing_is_our_status', 'billing_is_ours', 'billing_is_price', 'billing_is_successful',
        'billing_keep_lost_debts', 'billing_keep_lost_periods', 'billing_last_cycle', 'billing_last_day',
        'billing_live_daemons', 'billing_lock_key', 'billing_metadata_number', 'billing_names', 'billing_next_cycle',
        'billing_next_run', 'billing_notices', 'billing_organization', 'billing_outlook', 'billing_owed', 'billing_pause',
        'billing_pause_ended_at', 'billing_period_facts', 'billing_plan_lookup', 'billing_position',
        'billing_price_changes', 'billing_price_clock', 'billing_price_history', 'billing_reckon_covered',
        'billing_refusal', 'billing_refuse_other_generation', 'billing_replicas', 'billing_resumed_at',
        'billing_run_failures', 'billing_run_totals', 'billing_runway', 'billing_segments', 'billing_sound_wallets',
        'billing_statement', 'billing_statement_balance', 'billing_statement_corrections', 'billing_status',
        'billing_suspended', 'billing_time_ordered_uuid', 'billing_uncharged', 'billing_unrecorded', 'billing_waived',
        'billing_wallet_comparison', 'billing_whole_hours', 'billing_without_term'
    ];

    foreach name in array triggers loop
        execute format('drop trigger if exists %I on %I', split_part(name, ' ', 1), split_part(name, ' ', 2));
    end loop;
    foreach name in array indexes loop
        execute format('drop index if exists %I', name);
    end loop;
    foreach name in array views loop
        execute format('drop view if exists %I', name);
    end loop;
    -- Some functions return the rows of a table, and some tables use a function, so each pass drops only what nothing else
    -- depends on.
    for pass in 1..2 loop
        for signature in
            select p.oid::regprocedure::text from pg_proc p
            where p.pronamespace = current_schema()::regnamespace and p.proname = any (functions)
        loop
            begin
                execute 'drop function ' || signature;
            exception when dependent_objects_still_exist then
                if pass = 2 then
                    raise;
                end if;
            end;
        end loop;
        foreach name in array tables loop
            execute format('drop table if exists %I', name);
        end loop;
    end loop;
end
$$;

commit;
