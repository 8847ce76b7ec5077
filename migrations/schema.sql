-- The controller's own tables, functions and indexes after all migrations. Written by `make schema`; never applied.

CREATE FUNCTION billing_acceptable_backlogs(of_organization uuid, max_backlog_hours integer, default_monthly_price numeric) RETURNS TABLE(organization_id uuid, instance_id uuid, label text, hours bigint, owed numeric, since timestamp with time zone, starts_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select b.*, coalesce((
        select min(c.billing_period_start) from vps_billing_cycles c
        where c.vps_instance_id = b.instance_id and c.status = 'failed' and billing_is_ours(c.metadata)), b.since)
    from (
        select * from billing_backlogs(of_organization)
        union all
        select u.organization_id, u.instance_id, u.label, u.hours, coalesce(u.amount, 0.00), u.since
        from billing_unrecorded(now(), max_backlog_hours, max_backlog_hours, default_monthly_price, null) u
        where u.in_backlog and (of_organization is null or u.organization_id = of_organization)
            and not exists (select from billing_backlogs(u.organization_id) r where r.instance_id = u.instance_id)
    ) b
    order by b.since, b.instance_id
$$;

CREATE FUNCTION billing_accepted_since(of_organization uuid, since timestamp with time zone) RETURNS numeric
    LANGUAGE sql STABLE
    AS $$
    select coalesce(sum(c.amount), 0) from billing_corrections c
    where c.organization_id = of_organization and c.kind = 'accept' and c.made_at >= since
$$;

CREATE FUNCTION billing_affordable_segments(balance numeric, instance_ids uuid[], monthly_prices numeric[], period_starts timestamp with time zone[], hours bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$
declare
    remaining numeric := trunc(greatest(balance, 0), 2);  -- charges are whole cents; a balance may hold fractions of one
    affordable bigint[] := '{}';
    short uuid;
    segment record;
    cost numeric;
    paid bigint;
    a_month constant numeric := 2628000000000;  -- microseconds
    bound numeric;
    step numeric;
begin
    for segment in
        select * from unnest(instance_ids, monthly_prices, period_starts, hours) as s (instance_id, monthly_price, period_start, hours)
    loop
        paid := case when segment.instance_id = short then 0 else segment.hours end;
        cost := billing_charge(segment.monthly_price, segment.period_start, paid);
        if cost > remaining then
            bound := 2 * a_month * (100 * (billing_price_clock(segment.monthly_price, segment.period_start) + remaining) + 1)
                - a_month - 200 * segment.monthly_price * billing_epoch_microseconds(segment.period_start);
            step := 200 * segment.monthly_price * 3600000000;
            paid := greatest(div(bound, step) - (mod(bound, step) = 0)::int, 0);
            cost := billing_charge(segment.monthly_price, segment.period_start, paid);
            short := segment.instance_id;
        end if;
        remaining := remaining - cost;
        affordable := affordable || paid;
    end loop;
    return affordable;
end
$$;

CREATE FUNCTION billing_alert_facts() RETURNS TABLE(charged_instances bigint, failing_cycles bigint, cut_short_cycles bigint)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    AS $$
    select (
            select sum(r.instances)::bigint
            from billing_runs r
            where r.kind = 'cycle' and r.started_at <= last.started_at
                and r.started_at > last.started_at - greatest(interval '1 hour', coalesce(l.interval_minutes, 60) * interval '1 minute')
        ),
        (select count(*) from billing_runs r
         where r.kind = 'cycle' and r.outcome = 'failed' and r.started_at > coalesce(last.started_at, '-infinity')),
        (select count(*) from billing_runs r
         where r.kind = 'cycle' and r.outcome = 'stopped' and r.cause = 'drain' and r.started_at > now() - interval '1 day'
             and r.finished_at > now() - interval '1 hour')
    from billing_leadership l
    left join lateral (
        select r.started_at from billing_runs r
        where r.kind = 'cycle' and billing_is_successful(r.outcome)
        order by r.started_at desc
        limit 1
    ) last on true
$$;

CREATE FUNCTION billing_backlog_edge(as_of timestamp with time zone, max_hours integer) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    select coalesce((
        select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome)
    ), as_of) - (max_hours + 1) * interval '1 hour'
$$;

CREATE FUNCTION billing_backlogs(of_organization uuid DEFAULT NULL::uuid) RETURNS TABLE(organization_id uuid, instance_id uuid, label text, hours bigint, owed numeric, since timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select i.organization_id, i.id, i.label, open.hours, open.owed, open.since
    from (
        select c.vps_instance_id, sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            sum(billing_owed(c.metadata, c.total_amount)) as owed, min(c.billing_period_start) as since, max(c.billing_period_end) as ends_at
        from vps_billing_cycles c
        where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ? 'backlog'
            and (of_organization is null or c.organization_id = of_organization)
        group by c.vps_instance_id
    ) open
    join vps_instances i on i.id = open.vps_instance_id
    where not exists (
        select from billing_accepted_backlogs a
        where a.instance_id = i.id and a.organization_id = i.organization_id and a.accepted_from <= open.since
            and a.accepted_until >= open.ends_at)
    order by open.since, i.id
$$;

CREATE FUNCTION billing_beats_until() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    select case
        when exists (select from billing_live_daemons()) then '-infinity'
        when exists (select from billing_notices() n where n.halts) then 'infinity'
        else greatest(
            (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome))
                + coalesce(l.interval_minutes, 60) * interval '1 minute',
            l.bill_after,
            billing_resumed_at(),
            billing_pause_ended_at(),
            (select t.minted_at from billing_terms t order by t.term limit 1)
        ) + interval '90 minutes' end
    from billing_leadership l
$$;

CREATE FUNCTION billing_charge(monthly_price numeric, period_start timestamp with time zone, hours bigint) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select (div(200 * monthly_price * (billing_epoch_microseconds(period_start) + hours * 3600000000) + 2628000000000,
                5256000000000)
          - div(200 * monthly_price * billing_epoch_microseconds(period_start) + 2628000000000, 5256000000000)) * 0.01
$$;

CREATE FUNCTION billing_charge_description(label text, instance_id uuid, hours bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select 'VPS ' || case
            when label is null then instance_id::text
            when label ~* 'container|caas|easypanel|dokploy' then left(instance_id::text, 8)
            else label
        end || ', ' || hours::text || ' h'
$$;

CREATE FUNCTION billing_contend(lock_key bigint, wait_milliseconds integer, watched_pid integer) RETURNS TABLE(locked boolean, in_recovery boolean, pid integer, backend_start timestamp with time zone, application_name text, idle boolean, state_change timestamp with time zone, ours boolean, deadline_seconds double precision, generation integer, without_term text)
    LANGUAGE plpgsql
    AS $$
begin
    -- A standby server grants the lock too, so it is asked first. A running server never returns to recovery.
    in_recovery := pg_is_in_recovery();
    locked := false;
    if not in_recovery then
        if wait_milliseconds > 0 then
            begin
                perform set_config('lock_timeout', wait_milliseconds::text, true);
                perform pg_advisory_lock(lock_key);
                locked := true;
            exception when lock_not_available then
                -- The lock may have been granted as the time ran out. The session then holds it twice from here on.
                locked := pg_try_advisory_lock(lock_key);
            end;
        else
            locked := pg_try_advisory_lock(lock_key);
        end if;
    end if;
    generation := (select l.generation from billing_leadership l);
    if not locked and watched_pid is not null then
        -- Read after the wait: the server keeps what a transaction has read of pg_stat_activity until it ends. The session that
        -- last held the lock is looked up by its pid, because reading pg_locks every second would cost milliseconds on a server
        -- with many locks. Its last statement is visible only to sessions of the same role.
        select a.pid, a.backend_start, a.application_name, starts_with(a.state, 'idle'), a.state_change,
            a.usesysid = (select r.oid from pg_roles r where r.rolname = session_user) and pg_has_role(a.usesysid, 'usage'),
            substring(a.query from '^/[*] leads for ([0-9]+[.]?[0-9]*) s')::float8,
            billing_without_term(a.pid, a.backend_start, a.application_name, a.usename)
        into pid, backend_start, application_name, idle, state_change, ours, deadline_seconds, without_term
        from pg_stat_activity a
        where a.pid = watched_pid;
    end if;
    return next;
end
$$;

CREATE FUNCTION billing_cycle_due_at() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    select greatest(l.bill_after, least(
        (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_got_through(r.outcome, r.cause))
            + coalesce(l.interval_minutes, 60) * interval '1 minute',
        (select min(c.given_at) from billing_commands c where c.command = 'trigger' and c.finished_at is null)))
    from billing_leadership l
$$;

CREATE FUNCTION billing_debts() RETURNS TABLE(organization_id uuid, instances bigint, owed numeric, since timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select c.organization_id, count(distinct c.vps_instance_id), sum(billing_owed(c.metadata, c.total_amount)),
        min(c.billing_period_start)
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' = 'insufficient_balance'
    group by c.organization_id
$$;

CREATE FUNCTION billing_difference_candidates(of_organization uuid, since timestamp with time zone) RETURNS TABLE(kind text, amount numeric)
    LANGUAGE sql STABLE
    AS $$
    with payment as materialized (
        select t.id, t.amount, t.status, billing_is_ours(t.metadata) as ours,
            case when billing_is_ours(t.metadata) then t.created_at else coalesce(t.updated_at, t.created_at) end as moment,
            billing_metadata_number(t.metadata, 'balance_before') as before,
            billing_metadata_number(t.metadata, 'balance_after') as after
        from payment_transactions t
        where t.organization_id = of_organization and (t.metadata ->> 'wallet_type') is null and abs(t.amount) < 'infinity'
            and greatest(t.created_at, t.updated_at) >= since - interval '2 hours'
    ), debit as (
        -- a chain ends where another program has changed the wallet between two debits
        select *, count(*) filter (where begins) over (order by moment, id) as chain
        from (
            select *, before is distinct from lag(after) over (order by moment, id) as begins
            from payment where ours
        ) marked
    ), chained as (
        select *, first_value(before) over w as chain_before, first_value(moment) over w as chain_since, last_value(after) over w as chain_after
        from debit
        window w as (partition by chain order by moment, id rows between unbounded preceding and unbounded following)
    )
    select 'overwritten_debit', sum(lost.amount)
    from payment p
    cross join lateral (
        select d.before - d.chain_after as amount
        from chained d
        where d.before = p.before and abs(extract(epoch from d.moment - p.moment)) < 3600
            -- unless the chain begins with what the payment left
            and not (d.chain_before = p.after and p.moment <= d.chain_since)
        order by abs(extract(epoch from d.moment - p.moment))
        limit 1
    ) lost
    where not p.ours and p.status = 'completed'
    union all
    select 'overwritten_credit', -sum(p.after - p.before)
    from payment p
    where not p.ours and p.status = 'completed' and p.after <> p.before and exists (
        select from payment later
        where not later.ours and later.status = 'completed' and later.before = p.before
            and (later.moment, later.id) > (p.moment, p.id) and later.moment < p.moment + interval '15 minutes')
    union all
    select 'in_flight', -sum(p.amount)
    from payment p
    where not p.ours and p.status = 'completed' and p.amount > 0 and p.after is null and p.moment > now() - interval '15 minutes'
    union all
    select 'in_flight', sum(p.amount)
    from payment p
    where not p.ours and p.status = 'pending' and p.amount > 0 and p.moment > now() - interval '15 minutes'
    union all
    select 'half_cents', sum(p.after - p.before - p.amount)
    from payment p
    where not p.ours and p.status = 'completed' and abs(p.after - p.before - p.amount) <= 0.01
$$;

CREATE FUNCTION billing_due(last_billed_at timestamp with time zone, created_at timestamp with time zone, as_of timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select last_billed_at <= as_of - interval '1 hour'
        or last_billed_at = 'infinity'
        or (last_billed_at is null
            and (created_at is null or created_at = 'infinity' or created_at <= as_of - interval '1 hour'))
$$;

CREATE FUNCTION billing_epoch_microseconds(moment timestamp with time zone) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select round(extract(epoch from moment - timestamptz '1970-01-01 00:00:00+00') * 1000000)::numeric $$;

CREATE FUNCTION billing_explain_difference(difference numeric, kinds text[], amounts numeric[]) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select coalesce((
        select jsonb_object_agg(part.kind, part.amount::text) from (
            select p.kind, sum(p.amount) as amount
            from (
                select kinds[n] as kind, amounts[n] as amount from generate_subscripts(kinds, 1) n where best.chosen & (1 << n) > 0
                union all
                select case when abs(best.rest) <= 0.01 then 'half_cents' else 'unexplained' end, best.rest where best.rest <> 0
            ) p
            group by p.kind
        ) part
        where part.amount <> 0), '{}')
    from (
        select chosen.mask as chosen, difference - chosen.explained as rest
        from (
            select mask, coalesce((
                select sum(amounts[n]) from generate_subscripts(kinds, 1) n where mask & (1 << n) > 0), 0) as explained,
                (select count(*) from generate_subscripts(kinds, 1) n where mask & (1 << n) > 0) as parts
            from generate_series(0, (2 << cardinality(kinds)) - 2, 2) mask
        ) chosen
        order by abs(difference - chosen.explained), chosen.parts
        limit 1
    ) best
$$;

CREATE FUNCTION billing_failed_before() RETURNS TABLE(organization_id uuid)
    LANGUAGE sql STABLE
    AS $$
    select distinct c.organization_id
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' in ('error', 'locked')
$$;

CREATE FUNCTION billing_failure_reason(suspended text, wallets bigint, balance numeric, currency text, wanted_currency text, start_known boolean, hours bigint, monthly_price numeric) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case
        when suspended is not null then suspended
        when wallets is null then 'wallet_missing'
        when wallets > 1 then 'wallet_duplicate'
        when balance is null then 'balance_null'
        when balance = 'NaN' then 'balance_nan'
        when balance in ('infinity', '-infinity') then 'balance_infinite'
        when upper(currency) is distinct from wanted_currency then 'currency_mismatch'
        when not start_known then 'start_unknown'
        when hours = 0 then null
        when monthly_price is null then 'price_missing'
        when monthly_price < 0 then 'price_negative'
        when monthly_price = 'NaN' then 'price_nan'
        when monthly_price = 'infinity' then 'price_infinite'
    end
$$;

CREATE FUNCTION billing_failures() RETURNS TABLE(organization_id uuid, reason text, instances bigint, since timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select c.organization_id, c.metadata ->> 'reason', count(distinct c.vps_instance_id), min(c.billing_period_start)
    from vps_billing_cycles c
    where c.status = 'failed' and billing_is_ours(c.metadata)
        and c.metadata ->> 'reason' not in ('insufficient_balance', 'audit_violation', 'suspended')
    group by c.organization_id, c.metadata ->> 'reason'
$$;

CREATE FUNCTION billing_find(wanted text) RETURNS TABLE(kind text, organization_id uuid, organization text, slug text, instance_id uuid, label text)
    LANGUAGE plpgsql STABLE
    AS $_$
#variable_conflict use_column
begin
    if wanted ~* '^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$' then
        return query
        select 'organization', o.id, o.name::text, o.slug::text, null::uuid, null::text
        from organizations o where o.id = wanted::uuid
        union all
        select 'instance', o.id, o.name::text, o.slug::text, i.id, i.label::text
        from vps_instances i left join organizations o on o.id = i.organization_id where i.id = wanted::uuid;
        return;
    end if;
    return query
    select 'organization', o.id, o.name::text, o.slug::text, null::uuid, null::text from organizations o where o.slug = wanted;
    if found then
        return;
    end if;
    return query
    select 'instance', o.id, o.name::text, o.slug::text, i.id, i.label::text
    from vps_instances i left join organizations o on o.id = i.organization_id
    where i.label = wanted or i.provider_instance_id::text = wanted
    order by i.created_at, i.id;
end
$_$;

CREATE FUNCTION billing_gap_is_lawful(instance_id uuid, gap_start timestamp with time zone, gap_end timestamp with time zone, metadata jsonb) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select metadata ? 'moved_forward'
        or exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.billing_period_end = gap_end and c.status in ('billed', 'refunded')
                and not billing_is_ours(c.metadata))
        or coalesce(tstzrange(gap_start, gap_end) <@ (
            select range_agg(lost.period)
            from billing_lost_periods l cross join lateral unnest(l.periods) as lost (period)
            where l.vps_instance_id = instance_id), false)
        or gap_end <= (select m.applied_at from billing_schema_migrations m where m.name = '039_billing_lost_periods')
            and exists (
                select from billing_wallet_baselines b
                where not exists (select from organizations o where o.id = b.organization_id))
$$;

CREATE FUNCTION billing_got_through(outcome text, cause text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select coalesce(billing_is_successful(outcome) or (outcome = 'failed' and cause = 'organizations'), false) $$;

CREATE FUNCTION billing_hours_until(since timestamp with time zone, moment timestamp with time zone) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case
        when moment <= since then 0
        when moment = 'infinity' then 9223372036854775807
        else ceil(extract(epoch from moment - since) / 3600)::bigint
    end
$$;

CREATE FUNCTION billing_in_backlog(instance_id uuid, organization_id uuid, starts_at timestamp with time zone, edge timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select coalesce(starts_at <= edge, false)
        and not exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.status = 'failed' and billing_is_ours(c.metadata)
                and not c.metadata ? 'backlog' and c.billing_period_end > edge)
        and not exists (
            select from billing_accepted_backlogs a
            where a.instance_id = billing_in_backlog.instance_id and a.organization_id = billing_in_backlog.organization_id
                and a.accepted_from <= starts_at and a.accepted_until > edge)
$$;

CREATE FUNCTION billing_instance_debts(of_organization uuid DEFAULT NULL::uuid) RETURNS TABLE(organization_id uuid, organization text, slug text, instance_id uuid, label text, provider_instance_id text, hours bigint, owed numeric, since timestamp with time zone, next_hour numeric, balance numeric, pays_next_hour boolean)
    LANGUAGE sql STABLE
    AS $$
    select debt.organization_id, o.name, o.slug, debt.id, debt.label, debt.provider_instance_id, debt.hours, debt.owed,
        debt.since, next.price, wallet.balance, coalesce(wallet.balance >= next.price, false)
    from (
        select i.organization_id, i.id, i.label, i.provider_instance_id::text as provider_instance_id,
            sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            sum(billing_owed(c.metadata, c.total_amount)) as owed, min(c.billing_period_start) as since,
            (array_agg(c.metadata -> 'monthly_price' order by c.billing_period_start))[1] as monthly_price
        from vps_billing_cycles c
        join vps_instances i on i.id = c.vps_instance_id
        where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'reason' = 'insufficient_balance'
            and (of_organization is null or i.organization_id = of_organization)
        group by i.id
    ) debt
    join organizations o on o.id = debt.organization_id
    cross join lateral (
        select case when jsonb_typeof(debt.monthly_price) = 'number'
            then billing_charge((debt.monthly_price #>> '{}')::numeric, debt.since, 1) end as price
    ) next
    left join lateral (
        select min(w.balance) as balance from wallets w where w.organization_id = debt.organization_id having count(*) = 1
    ) wallet on true
    order by debt.since, debt.organization_id, debt.id
$$;

CREATE FUNCTION billing_instances(of_organization uuid, default_monthly_price numeric) RETURNS TABLE(instance_id uuid, label text, provider_instance_id text, plan_id text, billed_until timestamp with time zone, monthly_price numeric, price_source text, price_since timestamp with time zone, charged_from timestamp with time zone, charged_until timestamp with time zone, charged_hours bigint, charged_price numeric, charged_amount numeric, charged_run bigint, open_reason text, open_since timestamp with time zone, open_hours bigint, open_error text)
    LANGUAGE sql STABLE
    AS $$
    select i.id, i.label, i.provider_instance_id::text, i.plan_id, case when billing_is_moment(position.starts_at) then position.starts_at end,
        coalesce(price.monthly_price, default_monthly_price),
        case when price.monthly_price is null and default_monthly_price is not null then 'default' else coalesce(price.source, 'none') end,
        nullif(price.valid_from, '-infinity'), charge.billing_period_start, charge.billing_period_end, charge.hours, charge.monthly_price,
        charge.total_amount, charge.run, open.reason, open.since, open.hours, open.error
    from vps_instances i
    cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) position
    left join billing_price_history() price on price.key = i.plan_id and price.valid_from <= now() and price.valid_to > now()
    left join lateral (
        select c.billing_period_start, c.billing_period_end, c.total_amount,
            billing_whole_hours(c.billing_period_start, c.billing_period_end) as hours,
            case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number' then (c.metadata ->> 'monthly_price')::numeric end
                as monthly_price,
            case when jsonb_typeof(c.metadata -> 'run') = 'number' then (c.metadata ->> 'run')::bigint end as run
        from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status in ('billed', 'refunded') and billing_is_ours(c.metadata)
        order by c.billing_period_start desc
        limit 1
    ) charge on true
    cross join lateral (
        select min(c.metadata ->> 'reason') as reason, min(c.billing_period_start) as since,
            sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint as hours,
            min(c.metadata ->> 'error') as error
        from vps_billing_cycles c
        where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata)
    ) open
    where i.organization_id = of_organization
    order by coalesce(i.created_at, 'infinity'), i.id
$$;

CREATE FUNCTION billing_is_lawful_gap(instance_id uuid, starts_at timestamp with time zone, metadata jsonb) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select metadata ? 'moved_forward'
        or exists (
            select from vps_billing_cycles c
            where c.vps_instance_id = instance_id and c.billing_period_end = starts_at and c.status in ('billed', 'refunded')
                and not billing_is_ours(c.metadata))
        or exists (
            select from billing_wallet_baselines b
            where not exists (select from organizations o where o.id = b.organization_id))
$$;

CREATE FUNCTION billing_is_moment(moment timestamp with time zone) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select coalesce(moment >= timestamptz '1970-01-01 00:00:00+00' and moment < 'infinity', false) $$;

CREATE FUNCTION billing_is_of_wallet(status text, amount numeric, metadata jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select status = 'completed' and abs(amount) < 'infinity' and (metadata ->> 'wallet_type') is null $$;

CREATE FUNCTION billing_is_our_status(metadata jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select coalesce(jsonb_typeof(metadata -> 'term') = 'number', false) or billing_is_ours(metadata) $$;

CREATE FUNCTION billing_is_ours(metadata jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select coalesce(
        (metadata operator(pg_catalog.->>) 'controller')
            operator(pg_catalog.=) any (array['vps-billing', 'containerstacks-billing']), false)
$$;

CREATE FUNCTION billing_is_price(monthly_price numeric) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select coalesce(monthly_price >= 0 and monthly_price < 'infinity', false) $$;

CREATE FUNCTION billing_is_successful(outcome text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select outcome in ('completed', 'completed_with_failures') $$;

CREATE FUNCTION billing_keep_lost_debts() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
begin
    insert into billing_lost_debts (organization_id, instance_id, label, reason, since, hours, owed)
    select g.organization_id, g.vps_instance_id, min(g.metadata ->> 'vps_label'), min(g.metadata ->> 'reason'),
        min(g.billing_period_start), sum(billing_whole_hours(g.billing_period_start, g.billing_period_end)),
        sum(billing_owed(g.metadata, g.total_amount))
    from gone g
    where g.status = 'failed' and billing_is_ours(g.metadata)
        and (not exists (select from vps_instances i where i.id = g.vps_instance_id)
            or not exists (select from organizations o where o.id = g.organization_id))
    group by g.organization_id, g.vps_instance_id;
    return null;
exception when others then
    raise warning 'billing could not keep a lost debt: %', sqlerrm;
    return null;
end
$$;

CREATE FUNCTION billing_keep_lost_periods() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
begin
    insert into billing_lost_periods (vps_instance_id, organization_id, periods)
    select g.vps_instance_id, g.organization_id, range_agg(tstzrange(g.billing_period_start, g.billing_period_end))
    from gone g
    where g.status in ('billed', 'refunded') and billing_is_ours(g.metadata)
        and exists (select from vps_instances i where i.id = g.vps_instance_id)
        and not exists (select from organizations o where o.id = g.organization_id)
    group by g.vps_instance_id, g.organization_id;
    return null;
exception when others then
    raise warning 'billing could not keep lost periods: %', sqlerrm;
    return null;
end
$$;

CREATE FUNCTION billing_next_run() RETURNS bigint
    LANGUAGE sql
    AS $$ select coalesce(max(r.id), 0) + 1 from billing_runs r $$;

CREATE TABLE billing_runs (
    id bigint DEFAULT billing_next_run() NOT NULL,
    term bigint NOT NULL,
    holder text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    outcome text DEFAULT 'running'::text NOT NULL,
    instances bigint DEFAULT 0 NOT NULL,
    hours bigint DEFAULT 0 NOT NULL,
    amount numeric DEFAULT 0 NOT NULL,
    debts bigint DEFAULT 0 NOT NULL,
    failures bigint DEFAULT 0 NOT NULL,
    error text,
    kind text DEFAULT 'cycle'::text NOT NULL,
    cause text,
    planned bigint,
    charged_in_part bigint DEFAULT 0 NOT NULL,
    suspended bigint DEFAULT 0 NOT NULL,
    vanished bigint,
    failures_by_reason jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT billing_runs_cause_check CHECK ((cause = ANY (ARRAY['controller'::text, 'organizations'::text, 'drain'::text, 'halt'::text]))),
    CONSTRAINT billing_runs_kind_check CHECK ((kind = ANY (ARRAY['cycle'::text, 'collection'::text, 'waiver'::text]))),
    CONSTRAINT billing_runs_outcome_check CHECK ((outcome = ANY (ARRAY['running'::text, 'completed'::text, 'completed_with_failures'::text, 'failed'::text, 'stopped'::text, 'abandoned'::text])))
);

COMMENT ON COLUMN billing_runs.started_at IS 'by the database''s clock; the cycle charges everything due at this moment';

COMMENT ON COLUMN billing_runs.outcome IS 'stopped: a drain''s deadline passed first; abandoned: its leader was lost. The next cycle continues from what was committed';

COMMENT ON COLUMN billing_runs.debts IS 'instances whose wallet could not pay all their hours';

COMMENT ON COLUMN billing_runs.failures IS 'instances that could not be charged for another reason';

COMMENT ON COLUMN billing_runs.kind IS 'cycle: charges everything due; collection: collects debts between two cycles; waiver: writes off hours on an operator''s command';

COMMENT ON COLUMN billing_runs.cause IS 'why a cycle failed: controller (it is retried at once) or organizations (none of them could be charged). Why a cycle was stopped: drain (the replica was stopped before the cycle ended) or halt (billing was halted)';

COMMENT ON COLUMN billing_runs.planned IS 'instances that were due when the cycle started, including those that the plan missed; null if the cycle ended before it had a plan';

COMMENT ON COLUMN billing_runs.charged_in_part IS 'instances that paid only some of their hours; counted in both instances and debts';

COMMENT ON COLUMN billing_runs.vanished IS 'planned instances that were no longer due when the cycle reached them, because they were deleted or another program had charged them. Negative if more instances became due after the plan was made; null if the cycle did not finish its plan';

CREATE FUNCTION billing_last_cycle() RETURNS SETOF billing_runs
    LANGUAGE sql STABLE
    AS $$
    select * from billing_runs r where r.outcome <> 'running' and r.kind = 'cycle' order by r.started_at desc, r.id desc limit 1
$$;

CREATE FUNCTION billing_last_day() RETURNS TABLE(starts_at timestamp with time zone, cycles bigint, instances bigint, hours bigint, amount numeric, collected numeric, seconds double precision, debts bigint, failures bigint, failed boolean)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    AS $$
    select min(r.started_at), count(*) filter (where r.kind = 'cycle'), sum(r.instances)::bigint, sum(r.hours)::bigint, sum(r.amount),
        coalesce(sum(r.amount) filter (where r.kind = 'collection'), 0.00),
        max(extract(epoch from r.finished_at - r.started_at))::float8,
        coalesce(max(r.debts) filter (where r.kind = 'cycle'), 0), coalesce(max(r.failures) filter (where r.kind = 'cycle'), 0),
        coalesce(bool_or(r.outcome in ('failed', 'abandoned')) filter (where r.kind = 'cycle'), false)
    from billing_runs r
    where r.started_at > now() - interval '24 hours' and r.outcome <> 'running'
    group by date_bin(interval '15 minutes', r.started_at, timestamptz '2000-01-01 00:00:00+00')
    order by 1
$$;

CREATE FUNCTION billing_live_daemons() RETURNS TABLE(daemon_instance_id text, since timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select d.daemon_instance_id, d.since
    from billing_daemon_sightings d
    join billing_daemon_status s on s.daemon_instance_id = d.daemon_instance_id
    where clock_timestamp() < d.since + interval '180 seconds'
        and (d.changed or (s.status = 'running'
            and d.heartbeat_at > d.since - interval '180 seconds' and d.heartbeat_at < d.since + interval '180 seconds'))
$$;

CREATE FUNCTION billing_lock_key(lock_name text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select ('x' || encode(substring(sha256(convert_to(lock_name, 'UTF8')) from 1 for 8), 'hex'))::bit(64)::bigint $$;

CREATE FUNCTION billing_metadata_number(metadata jsonb, key text) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
    select case when jsonb_typeof(metadata -> key) in ('number', 'string') and metadata ->> key ~ '^-?\d{1,20}(\.\d{1,20})?$'
        then (metadata ->> key)::numeric end
$_$;

CREATE FUNCTION billing_names(ids uuid[]) RETURNS TABLE(id uuid, name text)
    LANGUAGE sql STABLE
    AS $$
    select o.id, o.slug::text from organizations o where o.id = any (ids)
    union all
    select w.id, o.slug from wallets w join organizations o on o.id = w.organization_id where w.id = any (ids)
    union all
    select i.id, coalesce(i.label || ' of ', '') || o.slug
    from vps_instances i join organizations o on o.id = i.organization_id where i.id = any (ids)
    union all
    select c.id, coalesce(i.label || ' of ', '') || o.slug
    from vps_billing_cycles c
    join vps_instances i on i.id = c.vps_instance_id
    join organizations o on o.id = c.organization_id
    where c.id = any (ids)
    union all
    select t.id, o.slug from payment_transactions t join organizations o on o.id = t.organization_id
    where t.id = any (ids) and not exists (select from vps_billing_cycles c where c.id = t.id)
$$;

CREATE FUNCTION billing_next_cycle() RETURNS TABLE(due_at timestamp with time zone, waiting_for text)
    LANGUAGE sql STABLE
    AS $$
    select scheduled.due_at,
        case
            when not exists (select from billing_replicas() where role = 'leader') then 'leader'
            when exists (select from billing_runs where outcome = 'running' and term = l.term) then 'running'
            when exists (select from billing_notices() n where n.halts) then 'halted'
            when l.bill_after > clock_timestamp() and l.bill_after = scheduled.due_at then 'takeover'
            when scheduled.due_at > clock_timestamp() then 'interval'
            else 'nothing'
        end
    from billing_leadership l
    cross join lateral (select billing_cycle_due_at() as due_at) scheduled
$$;

CREATE FUNCTION billing_notices() RETURNS TABLE(kind text, halts boolean, since timestamp with time zone, message text)
    LANGUAGE sql STABLE
    AS $$
    select 'other_daemon', true, min(d.since),
        'another billing daemon is alive: ' || string_agg(d.daemon_instance_id, ', ' order by d.daemon_instance_id)
            || '; stop it, and billing starts 3 minutes after its last heartbeat'
    from billing_live_daemons() d
    having count(*) > 0
    union all
    select 'other_periods', l.other_billers = 'stop' and p.repeated, p.since,
        'another program has billed ' || case when p.periods >= 100 then 'at least ' else '' end
            || p.instances || case when p.instances = 1 then ' instance' else ' instances' end
            || ' since ' || to_char(p.since at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC (see billing_foreign_periods); '
            || case when l.other_billers = 'warn' then 'BILLING_OTHER_BILLERS=warn lets billing continue'
                when p.repeated then 'stop that program, then run `containerstacks-billing resume`'
                else 'billing stops if that happens again; `containerstacks-billing resume` accepts it' end
    from billing_leadership l
    cross join lateral (
        select count(*) as periods, count(distinct f.vps_instance_id) as instances, min(f.created_at) as since,
            -- a person may correct one instance by hand; several instances, or several intervals, point to a program
            count(distinct f.vps_instance_id) > 1 or count(distinct floor(
                extract(epoch from f.created_at) / (60 * coalesce(l.interval_minutes, 60)))) > 1 as repeated
        from billing_foreign_periods f
        where f.created_at > coalesce(billing_resumed_at(), '-infinity')
    ) p
    where p.periods > 0
    union all
    select 'paused', true, p.since,
        'paused ' || case when p.until is null then 'until `containerstacks-billing resume`'
                else 'until ' || to_char(p.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' end
            || ' by ' || p.given_by || ': ' || p.reason
    from billing_pause() p
$$;

CREATE FUNCTION billing_organization(of_organization uuid) RETURNS TABLE(organization_id uuid, organization text, slug text, wallets bigint, balance numeric, currency text, suspended text, suspended_detail text, suspended_at timestamp with time zone, instances bigint)
    LANGUAGE sql STABLE
    AS $$
    select o.id, o.name, o.slug, wallet.wallets, wallet.balance, wallet.currency, s.failure_reason, s.detail, s.suspended_at,
        (select count(*) from vps_instances i where i.organization_id = o.id)
    from organizations o
    cross join lateral (
        select count(*) as wallets, case when count(*) = 1 then min(w.balance) end as balance,
            case when count(*) = 1 then min(w.currency::text) end as currency
        from wallets w where w.organization_id = o.id
    ) wallet
    left join lateral billing_suspended(o.id) s on true
    where o.id = of_organization
$$;

CREATE FUNCTION billing_outlook(of_organization uuid, as_of timestamp with time zone, default_monthly_price numeric, wanted_currency text, max_backlog_hours integer) RETURNS TABLE(instance_id uuid, starts_at timestamp with time zone, hours bigint, monthly_price numeric, price_source text, recorded boolean, cost numeric, failure_reason text, paid_hours bigint, amount numeric)
    LANGUAGE sql STABLE
    AS $$
    with due as materialized (
        select i.id, coalesce(i.created_at, 'infinity') as created_at
        from vps_instances i
        where i.organization_id = of_organization and billing_due(i.last_billed_at, i.created_at, as_of)
    ), priced as materialized (
        select due.created_at, s.*, min(s.starts_at) over (partition by s.instance_id) as billed_until
        from billing_segments(array(select due.id from due), as_of, default_monthly_price) s
        join due on due.id = s.instance_id
    ), segment as materialized (
        select s.*, o.balance,
            min(coalesce(
                billing_failure_reason(o.suspended, nullif(o.wallets, 0), o.balance, o.currency, wanted_currency, s.start_known,
                    s.hours, s.monthly_price),
                case when billing_in_backlog(s.instance_id, of_organization, s.billed_until, billing_backlog_edge(as_of, max_backlog_hours))
                    then 'backlog' end)) over (partition by s.instance_id) as failure_reason
        from priced s
        cross join billing_organization(of_organization) o
    ), allotted as (
        select a.instance_id, a.starts_at, a.paid_hours
        from (
            select array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at) as ids,
                array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at) as starts,
                billing_affordable_segments(min(s.balance),
                    array_agg(s.instance_id order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.monthly_price order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.starts_at order by s.created_at, s.instance_id, s.starts_at),
                    array_agg(s.hours order by s.created_at, s.instance_id, s.starts_at)) as affordable
            from segment s
            where s.failure_reason is null
        ) payable
        cross join lateral unnest(payable.ids, payable.starts, payable.affordable) as a (instance_id, starts_at, paid_hours)
    )
    select s.instance_id, s.starts_at, s.hours, s.monthly_price, s.price_source, s.row_id is not null,
        case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) end,
        s.failure_reason, coalesce(a.paid_hours, 0),
        case when a.paid_hours > 0 then billing_charge(s.monthly_price, s.starts_at, a.paid_hours) else 0.00 end
    from segment s
    left join allotted a on a.instance_id = s.instance_id and a.starts_at = s.starts_at
    order by s.created_at, s.instance_id, s.starts_at
$$;

CREATE FUNCTION billing_owed(metadata jsonb, total_amount numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select case when jsonb_typeof(metadata -> 'owed') = 'number' then (metadata ->> 'owed')::numeric else total_amount end $$;

CREATE FUNCTION billing_pause() RETURNS TABLE(since timestamp with time zone, until timestamp with time zone, given_by text, reason text)
    LANGUAGE sql STABLE
    AS $$
    with pause as (
        select p.*, lag(coalesce(p.until, 'infinity')) over (order by p.id) > p.given_at as replaces
        from billing_commands p
        where p.command = 'pause'
            and p.id > coalesce((select max(r.id) from billing_commands r where r.command = 'resume'), 0)
    )
    select (select max(f.given_at) from pause f where f.replaces is not true), newest.until, newest.given_by, newest.reason
    from (select * from pause order by id desc limit 1) newest
    where coalesce(newest.until, 'infinity') > clock_timestamp()
$$;

CREATE FUNCTION billing_pause_ended_at() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    select c.until
    from (select * from billing_commands p where p.command in ('pause', 'resume') order by p.id desc limit 1) c
    where c.command = 'pause' and c.until <= clock_timestamp()
$$;

CREATE FUNCTION billing_period_facts(label text, hours bigint, monthly_price numeric, price_source text) RETURNS jsonb
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select jsonb_build_object('hours', hours, 'monthly_price', monthly_price, 'price_source', price_source,
        'hours_charged', hours, 'vps_label', label,
        'base_hourly_rate', case when billing_is_price(monthly_price) then round(monthly_price / 730, 4) end)
$$;

CREATE FUNCTION billing_plan_lookup() RETURNS TABLE(key text, monthly_price numeric, source text, updated_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select distinct on (candidate.key) candidate.key, candidate.base_price + coalesce(candidate.markup_price, 0),
        candidate.source, candidate.updated_at
    from (
        select p.id::text as key, 'plan' as source, 1 as preference,
            p.base_price, p.markup_price, p.active, p.created_at, p.updated_at, p.id
        from vps_plans p
        union all
        select p.provider_plan_id, 'provider_plan', 2,
            p.base_price, p.markup_price, p.active, p.created_at, p.updated_at, p.id
        from vps_plans p
    ) candidate
    where candidate.key is not null
    order by candidate.key, candidate.preference, candidate.active desc nulls last, candidate.created_at, candidate.id
$$;

CREATE FUNCTION billing_position(instance_id uuid, last_billed_at timestamp with time zone, created_at timestamp with time zone) RETURNS TABLE(starts_at timestamp with time zone, ledger_end timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select greatest(coalesce(last_billed_at, created_at), ledger.period_end), ledger.period_end
    from (select) as always
    left join lateral (
        select c.billing_period_end as period_end
        from vps_billing_cycles c
        where c.vps_instance_id = instance_id and c.status in ('billed', 'refunded') and billing_is_ours(c.metadata)
        order by c.billing_period_start desc
        limit 1
    ) ledger on true
$$;

CREATE FUNCTION billing_price_changes() RETURNS TABLE(key text, valid_from timestamp with time zone, monthly_price numeric, source text)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    with recorded as (
        select distinct on (b.key) b.key, b.monthly_price, b.source from billing_prices b order by b.key, b.valid_from desc
    )
    select coalesce(p.key, r.key),
        case
            when r.key is null then '-infinity'
            when p.updated_at > k.checked_at and p.updated_at <= now() then p.updated_at
            else now()
        end,
        p.monthly_price, coalesce(p.source, 'none')
    from (select max(c.checked_at) as checked_at from billing_price_check c) k
    cross join (billing_plan_lookup() p full join recorded r on r.key = p.key)
    where r.key is null or p.monthly_price is distinct from r.monthly_price or coalesce(p.source, 'none') <> r.source
$$;

CREATE FUNCTION billing_price_clock(monthly_price numeric, moment timestamp with time zone) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select div(200 * monthly_price * billing_epoch_microseconds(moment) + 2628000000000, 5256000000000) * 0.01 $$;

CREATE FUNCTION billing_price_history() RETURNS TABLE(key text, monthly_price numeric, source text, valid_from timestamp with time zone, valid_to timestamp with time zone, next_price numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select h.key, h.monthly_price, h.source, h.valid_from,
        lead(h.valid_from, 1, 'infinity') over (partition by h.key order by h.valid_from),
        (array_agg(h.monthly_price) filter (where billing_is_price(h.monthly_price)) over (
            partition by h.key order by h.valid_from rows between 1 following and unbounded following))[1]
    from (
        select b.key, b.monthly_price, b.source, b.valid_from from billing_prices b
        union all
        select c.key, c.monthly_price, c.source, c.valid_from from billing_price_changes() c
    ) h
$$;

CREATE FUNCTION billing_reckon_covered(first_organization uuid, last_organization uuid, after_created_at timestamp with time zone, after_id uuid, as_of timestamp with time zone, max_backlog_hours integer, batch_size bigint) RETURNS TABLE(id uuid, organization_id uuid, label text, created_at timestamp with time zone, last_billed_at timestamp with time zone, period_start timestamp with time zone, hours bigint, monthly_price numeric, price_source text, moved_forward boolean, amount numeric)
    LANGUAGE sql STABLE
    AS $$
    with due as materialized (
        select id, organization_id, plan_id, label, coalesce(created_at, 'infinity') as created_at, last_billed_at,
            coalesce(last_billed_at, created_at) as period_start
        from vps_instances
        where organization_id between first_organization and last_organization
            and billing_due(last_billed_at, created_at, as_of)
            and (after_id is null
                or (coalesce(created_at, 'infinity'), id) > (after_created_at, after_id))
        order by organization_id, coalesce(created_at, 'infinity'), id
        limit batch_size
    ), indebted as materialized (
        select vps_instance_id from vps_billing_cycles
        where vps_instance_id = any (array(select id from due)) and status = 'failed' and billing_is_ours(metadata)
    ), backlog as materialized (
        select billing_backlog_edge(as_of, max_backlog_hours) as edge
    ), price as materialized (
        select key, monthly_price, source, valid_from from billing_price_history() where valid_to = 'infinity'
    )
    -- `is not true` keeps the planner from making a join of `in`, because it can't estimate the size of that join
    select due.id, due.organization_id, due.label, due.created_at, due.last_billed_at, due.period_start, counted.hours,
        p.monthly_price, p.source as price_source, position.ledger_end < due.period_start as moved_forward,
        case when billing_is_price(p.monthly_price) and p.valid_from <= due.period_start and counted.hours is not null
                and (position.ledger_end > due.period_start) is not true
                and (due.id in (select vps_instance_id from indebted)) is not true
                and (due.period_start <= (select edge from backlog)) is not true
            then billing_charge(p.monthly_price, due.period_start, counted.hours) end as amount
    from due
    cross join lateral (
        select case when billing_is_moment(due.period_start) then billing_whole_hours(due.period_start, as_of) end as hours
    ) counted
    cross join lateral billing_position(due.id, due.last_billed_at, due.created_at) position
    left join price p on p.key = due.plan_id
$$;

CREATE FUNCTION billing_refusal(command text, given_in bigint) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select case
        when command = 'trigger' and halt.message is not null then 'billing is halted: ' || halt.message
        when command = 'trigger' and l.bill_after > clock_timestamp()
            then 'a takeover waits until ' || to_char(l.bill_after at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS')
                || ' UTC, because the application may still be billing; then the cycle starts by itself'
        when command = 'step-down' and given_in < l.term then l.holder || ' has taken over already'
        when command = 'step-down' and not exists (select from billing_replicas() r where r.role = 'standby')
            then 'no standby is connected, so no replica could take over from ' || l.holder
    end
    from billing_leadership l
    left join lateral (select n.message from billing_notices() n where n.halts limit 1) halt on true
$$;

CREATE FUNCTION billing_refuse_other_generation() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
declare
    leadership billing_leadership;
begin
    select * into strict leadership from billing_leadership;
    if new.generation is distinct from leadership.generation then
        raise exception 'this database follows the billing rules of generation %, this program those of generation %: use containerstacks-billing % or newer, as it ran the migration',
            leadership.generation, coalesce(new.generation, 1), leadership.needs_version
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    return new;
end
$$;

CREATE FUNCTION billing_replicas() RETURNS TABLE(instance_id text, role text, connected_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select
        case when holds.pid is null then regexp_replace(a.application_name, '^billing elector ', '') else coalesce(without_term, l.holder) end,
        case when holds.pid is null then 'standby' when without_term is null then 'leader' else 'without term' end,
        a.backend_start
    from billing_leadership l
    cross join pg_stat_activity a
    left join (
        select k.pid, (k.classid::bigint << 32) | k.objid::bigint as lock_key
        from pg_locks k
        where k.locktype = 'advisory' and k.granted and k.objsubid = 1
            and k.database = (select oid from pg_database where datname = current_database())
    ) holds on holds.pid = a.pid and holds.lock_key = billing_lock_key(l.lock_name)
    cross join lateral billing_without_term(a.pid, a.backend_start, a.application_name, a.usename) as without_term
    where a.datname = current_database()
        and (holds.pid is not null or starts_with(a.application_name, 'billing elector '))
    order by holds.pid is null, a.backend_start
$$;

CREATE FUNCTION billing_resumed_at() RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$ select max(c.given_at) from billing_commands c where c.command = 'resume' $$;

CREATE FUNCTION billing_run_failures(of_run bigint) RETURNS TABLE(organization_id uuid, slug text, instance_id uuid, label text, reason text, since timestamp with time zone, hours bigint, error text)
    LANGUAGE sql STABLE
    AS $$
    select c.organization_id, min(o.slug), c.vps_instance_id, min(i.label), min(c.metadata ->> 'reason'),
        min(c.billing_period_start), sum(billing_whole_hours(c.billing_period_start, c.billing_period_end))::bigint,
        min(c.metadata ->> 'error')
    from vps_billing_cycles c
    join vps_instances i on i.id = c.vps_instance_id
    join organizations o on o.id = c.organization_id
    where c.status = 'failed' and billing_is_ours(c.metadata) and c.metadata ->> 'run' = of_run::text
        and c.metadata ->> 'reason' <> 'insufficient_balance'
    group by c.organization_id, c.vps_instance_id
    order by 5, 2, 4, 3
$$;

CREATE FUNCTION billing_run_totals(run bigint) RETURNS TABLE(instances bigint, charged_in_part bigint, hours bigint, amount numeric, debts bigint, failures bigint, suspended bigint, failures_by_reason jsonb)
    LANGUAGE sql STABLE
    AS $$
    select coalesce(sum(b.instances), 0)::bigint, coalesce(sum(b.charged_in_part), 0)::bigint,
        coalesce(sum(b.hours), 0)::bigint, coalesce(sum(b.amount), 0.00), coalesce(sum(b.debts), 0)::bigint,
        coalesce(sum(b.failures), 0)::bigint, coalesce(sum(b.suspended), 0)::bigint,
        (select coalesce(jsonb_object_agg(reason.key, reason.instances), '{}') from (
            select r.key, sum(r.value::bigint) as instances
            from billing_batches f cross join lateral jsonb_each_text(f.failures_by_reason) r
            where f.run_id = run
            group by r.key) reason)
    from billing_batches b
    where b.run_id = run
$$;

CREATE FUNCTION billing_runway(of_organization uuid, default_monthly_price numeric) RETURNS TABLE(organization_id uuid, organization text, slug text, instances bigint, monthly_price numeric, balance numeric, hours_left numeric)
    LANGUAGE sql STABLE
    AS $$
    select o.id, o.name, o.slug, used.instances, used.monthly_price, wallet.balance,
        case when used.monthly_price > 0 and wallet.balance is not null then round(greatest(wallet.balance, 0) * 730 / used.monthly_price, 1) end
    from (
        select i.organization_id, count(*) as instances,
            sum(case when billing_is_price(coalesce(p.monthly_price, default_monthly_price))
                then coalesce(p.monthly_price, default_monthly_price) else 0 end) as monthly_price
        from vps_instances i
        left join (
            select h.key, h.monthly_price from billing_price_history() h where h.valid_from <= now() and h.valid_to > now()
        ) p on p.key = i.plan_id
        where of_organization is null or i.organization_id = of_organization
        group by i.organization_id
    ) used
    join organizations o on o.id = used.organization_id
    left join (
        select w.organization_id, min(w.balance) as balance
        from wallets w
        where of_organization is null or w.organization_id = of_organization
        group by w.organization_id
        having count(*) = 1 and abs(min(w.balance)) < 'infinity'
    ) wallet on wallet.organization_id = o.id
    order by 7 nulls last, o.slug
$$;

CREATE FUNCTION billing_segments(instance_ids uuid[], as_of timestamp with time zone, default_monthly_price numeric) RETURNS TABLE(instance_id uuid, starts_at timestamp with time zone, hours bigint, monthly_price numeric, price_source text, row_id uuid, since jsonb, start_known boolean, ledger_end timestamp with time zone)
    LANGUAGE plpgsql STABLE
    AS $$
#variable_conflict use_column
begin
    return query
    with instance as materialized (
        select i.id, i.plan_id, position.ledger_end, billing_is_moment(position.starts_at) as start_known,
            case when billing_is_moment(position.starts_at) then position.starts_at else as_of - interval '1 hour' end as starts_at
        from vps_instances i
        cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) position
        where i.id = any (instance_ids)
    ), standing as materialized (
        select *, greatest(billing_whole_hours(instance.starts_at, as_of), 0) as hours from instance
    ), open_row as materialized (
        select c.id as row_id, s.id, greatest(c.billing_period_start, s.starts_at) as starts_at,
            least(c.billing_period_end, s.starts_at + s.hours * interval '1 hour') as ends_at,
            case when jsonb_typeof(c.metadata -> 'monthly_price') = 'number'
                then (c.metadata ->> 'monthly_price')::numeric end as monthly_price,
            c.metadata ->> 'price_source' as price_source, c.metadata -> 'since' as since
        from standing s
        join vps_billing_cycles c on c.vps_instance_id = s.id and c.status = 'failed' and billing_is_ours(c.metadata)
    ), recorded as materialized (
        -- Open rows that hold a price and time that is still unbilled. If rows overlap, each hour is owed once: the earlier
        -- row ends where the later one begins.
        select * from (
            select r.row_id, r.id, r.starts_at, r.monthly_price, r.price_source, r.since,
                least(r.ends_at, lead(r.starts_at) over (partition by r.id order by r.starts_at, r.ends_at)) as ends_at
            from open_row r
            where billing_is_price(r.monthly_price) and r.ends_at > r.starts_at
        ) cut
        where cut.ends_at > cut.starts_at
    ), gap as (
        select s.id, s.starts_at as from_time, coalesce(min(r.starts_at), 'infinity') as to_time
        from standing s left join recorded r on r.id = s.id
        group by s.id, s.starts_at
        union all
        select r.id, r.ends_at, lead(r.starts_at, 1, 'infinity') over (partition by r.id order by r.starts_at) from recorded r
    ), piece as (
        select r.id, r.row_id, r.monthly_price, r.price_source, r.since, r.starts_at as from_time, r.ends_at as to_time
        from recorded r
        union all
        select g.id, null,
            case when billing_is_price(h.monthly_price) then h.monthly_price
                else coalesce(case when h.monthly_price is null then default_monthly_price end, h.next_price, h.monthly_price) end,
            case when h.monthly_price is null and default_monthly_price is not null then 'default' else h.source end,
            null, greatest(g.from_time, h.valid_from), least(g.to_time, h.valid_to)
        from gap g
        join standing s on s.id = g.id
        left join billing_price_history() h on h.key = s.plan_id and h.valid_from < g.to_time and h.valid_to > g.from_time
        where g.from_time < g.to_time
    ), counted as (
        -- an hour belongs to the piece in which it begins
        select p.*, least(billing_hours_until(s.starts_at, p.from_time), s.hours) as first_hour,
            least(billing_hours_until(s.starts_at, p.to_time), s.hours) as end_hour
        from piece p
        join standing s on s.id = p.id
    ), compared as (
        select c.*, c.row_id is null and lag(c.end_hour) over w is not null
            and c.monthly_price is not distinct from lag(c.monthly_price) over w as continues
        from counted c
        where c.end_hour > c.first_hour
        window w as (partition by c.id order by c.first_hour)
    ), numbered as (
        select c.*, count(*) filter (where not c.continues) over (partition by c.id order by c.first_hour) as number
        from compared c
    )
    select s.id, segment.starts_at, segment.hours, segment.monthly_price, segment.price_source,
        coalesce(segment.row_id, reused.row_id), coalesce(segment.since, reused.since), s.start_known, s.ledger_end
    from (
        select s.id, s.start_known, s.ledger_end, s.starts_at + coalesce(min(n.first_hour), 0) * interval '1 hour' as starts_at,
            coalesce(max(n.end_hour) - min(n.first_hour), 0) as hours,
            (array_agg(n.monthly_price order by n.first_hour))[1] as monthly_price,
            (array_agg(n.price_source order by n.first_hour))[1] as price_source,
            (array_agg(n.row_id order by n.first_hour))[1] as row_id, (array_agg(n.since order by n.first_hour))[1] as since
        from standing s
        left join numbered n on n.id = s.id
        group by s.id, s.starts_at, s.start_known, s.ledger_end, n.number
    ) segment
    join standing s on s.id = segment.id
    -- an open row without a price is used again by the segment that begins where it does
    left join open_row reused on segment.row_id is null and reused.id = segment.id and reused.starts_at = segment.starts_at
        and not billing_is_price(reused.monthly_price);
end
$$;

CREATE FUNCTION billing_sound_wallets(wanted_currency text) RETURNS TABLE(organization_id uuid, wallet_id uuid, balance numeric)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select w.organization_id, w.id, w.balance
    from wallets w
    where w.balance < 'infinity' and upper(w.currency) = wanted_currency
        and exists (select from billing_wallet_baselines b where b.wallet_id = w.id)
        and not exists (select from wallets other where other.organization_id = w.organization_id and other.id <> w.id)
        and not exists (
            select from billing_suspensions s
            where s.organization_id = w.organization_id and (s.until is null or s.until > now()))
$$;

CREATE FUNCTION billing_statement(of_organization uuid, from_time timestamp with time zone, to_time timestamp with time zone) RETURNS TABLE(kind text, booked_at timestamp with time zone, instance_id uuid, label text, starts_at timestamp with time zone, ends_at timestamp with time zone, hours bigint, monthly_price numeric, amount numeric, bookings bigint, description text)
    LANGUAGE sql STABLE
    AS $$
    with payment as materialized (
        select t.id, t.created_at, t.amount, t.description, t.metadata, billing_is_ours(t.metadata) as ours
        from payment_transactions t
        where t.organization_id = of_organization and billing_is_of_wallet(t.status, t.amount, t.metadata)
            and t.created_at >= from_time and t.created_at < to_time
    ), booking as (
        select case when p.ours then 'charge' when p.amount > 0 then 'top_up' else 'debit' end as kind, p.created_at, p.amount,
            coalesce(c.vps_instance_id::text, case when p.ours then p.metadata ->> 'vps_instance_id' end) as instance_id,
            c.billing_period_start as starts_at, c.billing_period_end as ends_at, coalesce(c.metadata, p.metadata) as metadata,
            case when not p.ours or c.id is null then p.description end as description, p.id
        from payment p
        left join vps_billing_cycles c on p.ours and c.payment_transaction_id = p.id
        union all
        -- hours that cost nothing have no payment
        select case when c.metadata ? 'waived' then 'waiver' else 'charge' end, c.created_at, 0.00, c.vps_instance_id::text,
            c.billing_period_start, c.billing_period_end, c.metadata, null, c.id
        from vps_billing_cycles c
        where c.organization_id = of_organization and c.status = 'billed' and billing_is_ours(c.metadata)
            and c.payment_transaction_id is null and c.created_at >= from_time and c.created_at < to_time
    ), priced as (
        select b.*, case when jsonb_typeof(b.metadata -> 'monthly_price') = 'number' and b.starts_at is not null
                then (b.metadata ->> 'monthly_price')::numeric end as monthly_price,
            case when jsonb_typeof(b.metadata -> 'hours') = 'number' and b.kind <> 'debit' then (b.metadata ->> 'hours')::bigint end as hours
        from booking b
    ), marked as (
        select p.*, p.starts_at is not distinct from lag(p.ends_at) over same and p.starts_at is not null as continues
        from priced p
        window same as (partition by p.kind, p.instance_id, p.monthly_price order by p.starts_at, p.id)
    ), numbered as (
        select m.*, case when m.starts_at is null then 0 else count(*) filter (where not m.continues) over (
            partition by m.kind, m.instance_id, m.monthly_price order by m.starts_at, m.id) end as number
        from marked m
    ), line as (
        select n.kind, min(n.created_at) as booked_at, n.instance_id, min(n.starts_at) as starts_at, max(n.ends_at) as ends_at,
            sum(n.hours)::bigint as hours, n.monthly_price, sum(n.amount) as amount, count(*) as bookings,
            min(n.description) as description, min(n.metadata ->> 'vps_label') as old_label
        from numbered n
        group by n.kind, n.instance_id, n.monthly_price, n.number, case when n.kind in ('top_up', 'debit') then n.id end
    )
    select l.kind, l.booked_at, i.id, coalesce(i.label, l.old_label, l.instance_id), l.starts_at, l.ends_at, l.hours,
        l.monthly_price, l.amount, l.bookings, l.description
    from line l
    left join vps_instances i on i.id::text = l.instance_id and i.organization_id = of_organization
    order by l.kind <> 'top_up', l.kind, coalesce(i.label, l.old_label, l.instance_id), l.starts_at, l.booked_at
$$;

CREATE FUNCTION billing_statement_balance(of_organization uuid, from_time timestamp with time zone, to_time timestamp with time zone) RETURNS TABLE(opening numeric, credits numeric, debits numeric, closing numeric, currency text, balance_now numeric, expected_now numeric, difference numeric, adopted_at timestamp with time zone, derived boolean)
    LANGUAGE sql STABLE
    AS $$
    select first.balance + paid.earlier, paid.credits, paid.debits, first.balance + paid.earlier + paid.credits + paid.debits,
        wallet.currency, wallet.balance, first.balance + paid.total, wallet.balance - (first.balance + paid.total),
        b.adopted_at, coalesce(from_time < b.adopted_at, true)
    from (
        select coalesce(sum(t.amount), 0) as total,
            coalesce(sum(t.amount) filter (where t.created_at is null or t.created_at < from_time), 0) as earlier,
            coalesce(sum(t.amount) filter (where t.created_at >= from_time and t.created_at < to_time and t.amount > 0), 0) as credits,
            coalesce(sum(t.amount) filter (where t.created_at >= from_time and t.created_at < to_time and t.amount < 0), 0) as debits
        from payment_transactions t
        where t.organization_id = of_organization and billing_is_of_wallet(t.status, t.amount, t.metadata)
    ) paid
    left join (
        select (array_agg(w.id))[1] as id, min(w.balance) as balance, min(w.currency::text) as currency
        from wallets w where w.organization_id = of_organization
        having count(*) = 1 and abs(min(w.balance)) < 'infinity'
    ) wallet on true
    left join billing_wallet_baselines b on b.wallet_id = wallet.id
    cross join lateral (select coalesce(b.baseline, wallet.balance - paid.total) as balance) first
$$;

CREATE FUNCTION billing_statement_corrections(of_organization uuid, from_time timestamp with time zone, to_time timestamp with time zone) RETURNS TABLE(kind text, booked_at timestamp with time zone, instance_id uuid, label text, starts_at timestamp with time zone, ends_at timestamp with time zone, hours bigint, monthly_price numeric, amount numeric, bookings bigint, description text)
    LANGUAGE sql STABLE
    AS $$
    select 'correction', c.made_at, null::uuid, null::text, null::timestamptz, null::timestamptz, null::bigint, null::numeric,
        case when c.kind = 'accept' then c.amount else 0.00 end, 1::bigint,
        case when c.kind = 'accept' then 'difference accepted: ' else 'wallet corrected by ' || c.amount || ': ' end
            || c.reason
    from billing_corrections c
    where c.organization_id = of_organization and c.made_at >= from_time and c.made_at < to_time
    order by c.made_at, c.id
$$;

CREATE FUNCTION billing_status() RETURNS TABLE(leader text, term bigint, leading_since timestamp with time zone, standbys text[], next_cycle_at timestamp with time zone, waiting_for text, running_since timestamp with time zone, last_completed_at timestamp with time zone, last_run jsonb, heartbeat_age_seconds double precision, debts bigint, owed numeric, failures bigint, suspended bigint, checked_until timestamp with time zone, database_time timestamp with time zone)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    AS $$
    select replica.leader, l.term, case when replica.leader is not null then l.elected_at end, replica.standbys,
        next.due_at, next.waiting_for,
        case when replica.leader is not null then (
            select r.started_at from billing_runs r where r.outcome = 'running' and r.term = l.term order by r.id desc limit 1) end,
        (select max(r.started_at) from billing_runs r where r.kind = 'cycle' and billing_is_successful(r.outcome)),
        -- the amount as text, because JSON readers turn numbers into floats
        (select to_jsonb(r) || jsonb_build_object('amount', r.amount::text)
         from billing_history r where r.id = (select c.id from billing_last_cycle() c)),
        (select extract(epoch from clock_timestamp() - max(s.heartbeat_at))::float8
         from billing_daemon_status s where isfinite(s.heartbeat_at)),
        debt.instances, debt.owed, failure.instances,
        (select count(*) from billing_suspensions s where s.kind = 'guard'),
        (select g.checked_until from billing_guard g),
        clock_timestamp()
    from billing_leadership l
    cross join billing_next_cycle() next
    cross join lateral (
        select min(r.instance_id) filter (where r.role = 'leader') as leader,
            coalesce(array_agg(r.instance_id) filter (where r.role = 'standby'), '{}') as standbys
        from billing_replicas() r
    ) replica
    cross join (select coalesce(sum(d.instances), 0)::bigint as instances, coalesce(sum(d.owed), 0) as owed from billing_debts() d) debt
    cross join (select coalesce(sum(f.instances), 0)::bigint as instances from billing_failures() f) failure
$$;

CREATE FUNCTION billing_suspended(of_organization uuid) RETURNS TABLE(failure_reason text, detail text, suspended_at timestamp with time zone)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select case when s.kind = 'guard' then 'audit_violation' else 'suspended' end,
        s.reason || ', ' || s.detail
            || coalesce(', until ' || to_char(s.until at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC', ''),
        s.suspended_at
    from billing_suspensions s
    where s.organization_id = of_organization and (s.until is null or s.until > now())
    order by s.kind
    limit 1
$$;

CREATE FUNCTION billing_time_ordered_uuid(moment timestamp with time zone) RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$
    select (overlay(lpad(to_hex((extract(epoch from moment) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
        || right(gen_random_uuid()::text, 17))::uuid
$$;

CREATE FUNCTION billing_uncharged() RETURNS TABLE(organization_id uuid, organization text, slug text, reason text, instances bigint, hours numeric, owed numeric, since timestamp with time zone, error text)
    LANGUAGE sql STABLE
    AS $$
    select open.organization_id, o.name, o.slug, open.reason, open.instances, open.hours, open.owed, open.since, open.error
    from (
        select c.organization_id, c.metadata ->> 'reason' as reason, count(distinct c.vps_instance_id) as instances,
            sum(billing_whole_hours(c.billing_period_start, c.billing_period_end)) as hours,
            sum(billing_owed(c.metadata, c.total_amount)) as owed, min(c.billing_period_start) as since,
            min(c.metadata ->> 'error') as error
        from vps_billing_cycles c
        where c.status = 'failed' and billing_is_ours(c.metadata)
        group by c.organization_id, c.metadata ->> 'reason'
    ) open
    join organizations o on o.id = open.organization_id
$$;

CREATE FUNCTION billing_unrecorded(as_of timestamp with time zone, min_hours integer, max_hours integer, default_monthly_price numeric, listed integer) RETURNS TABLE(organization_id uuid, instance_id uuid, label text, since timestamp with time zone, hours bigint, amount numeric, in_backlog boolean, found bigint)
    LANGUAGE sql STABLE
    AS $$
    select w.organization_id, w.id, w.label, w.since, w.hours, (
            select sum(case when billing_is_price(s.monthly_price) then billing_charge(s.monthly_price, s.starts_at, s.hours) end)
            from billing_segments(array[w.id], as_of, default_monthly_price) s where s.starts_at >= w.since),
        coalesce(billing_in_backlog(w.id, w.organization_id, w.starts_at, billing_backlog_edge(as_of, max_hours)), false), w.found
    from (
        select i.id, i.organization_id, i.label, p.starts_at, r.since, billing_whole_hours(r.since, as_of) as hours, count(*) over () as found
        from vps_instances i
        cross join lateral billing_position(i.id, i.last_billed_at, i.created_at) p
        cross join lateral (
            select greatest(p.starts_at, max(c.billing_period_end)) as since
            from vps_billing_cycles c
            where c.vps_instance_id = i.id and c.status = 'failed' and billing_is_ours(c.metadata) and not c.metadata ? 'backlog'
        ) r
        where billing_due(i.last_billed_at, i.created_at, as_of) and billing_is_moment(p.starts_at)
            and coalesce(i.last_billed_at, i.created_at) < as_of - min_hours * interval '1 hour'
            and billing_whole_hours(r.since, as_of) > min_hours
        order by hours desc, i.id
        limit listed
    ) w
    order by w.hours desc, w.id
$$;

CREATE FUNCTION billing_waived(metadata jsonb) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case when jsonb_typeof(metadata -> 'waived' -> 'amount') = 'number'
        then (metadata -> 'waived' ->> 'amount')::numeric else 0 end
$$;

CREATE FUNCTION billing_wallet_comparison(of_organization uuid) RETURNS TABLE(organization_id uuid, wallet_id uuid, balance numeric, currency text, left_balance numeric, adopted_at timestamp with time zone, baseline numeric, completed numeric, other_wallets numeric, expected numeric, difference numeric, not_compared text, explanation jsonb, unsettled text, compared_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
    select o.id, w.id, w.balance, w.currency, b.left_balance, b.adopted_at, b.baseline, paid.completed, paid.other_wallets,
        b.baseline + paid.completed, found.difference,
        case
            when coalesce(w.wallets, 0) = 0 then 'wallet_missing'
            when w.wallets > 1 then 'wallet_duplicate'
            when w.balance is null then 'balance_null'
            when w.balance = 'NaN' then 'balance_nan'
            when abs(w.balance) = 'infinity' then 'balance_infinite'
            when b.wallet_id is null then 'not_adopted'
        end,
        case when found.difference <> 0 then (
            select billing_explain_difference(found.difference, coalesce(array_agg(c.kind), '{}'), coalesce(array_agg(c.amount), '{}'))
            from (
                select k.kind, k.amount
                from billing_difference_candidates(o.id, greatest(b.adopted_at, b.checked_at, corrected.made_at)) k
                where k.amount <> 0
                union all
                select 'deleted_rows', b.checked_completed - paid.completed_then
                where not paid.changed_since and paid.completed_then <> b.checked_completed
            ) c) end,
        case
            when paid.unbooked then 'a top-up that was completed less than 15 minutes ago has no balance_after yet'
            when paid.changed_now then 'a payment has changed in the last 60 seconds'
        end,
        now()
    from organizations o
    left join (
        select x.organization_id, count(*) as wallets, (array_agg(x.id))[1] as id, min(x.balance) as balance, min(x.currency::text) as currency
        from wallets x where x.organization_id = of_organization group by x.organization_id
    ) w on true
    left join billing_wallet_baselines b on b.wallet_id = w.id and w.wallets = 1
    left join lateral (
        select max(c.made_at) as made_at from billing_corrections c where c.organization_id = o.id
    ) corrected on true
    cross join lateral (
        select coalesce(sum(t.amount) filter (where f.of_wallet), 0) as completed,
            coalesce(sum(t.amount) filter (where f.of_wallet and (t.created_at > b.checked_at) is not true), 0) as completed_then,
            coalesce(bool_or((t.created_at > b.checked_at) is not true and t.updated_at > b.checked_at), false) as changed_since,
            coalesce(sum(t.amount) filter (where t.status = 'completed' and abs(t.amount) < 'infinity' and not f.of_wallet), 0) as other_wallets,
            coalesce(bool_or(f.of_wallet and t.amount > 0 and not billing_is_ours(t.metadata) and f.age < interval '15 minutes'
                and billing_metadata_number(t.metadata, 'balance_after') is null), false) as unbooked,
            coalesce(bool_or(f.age < interval '60 seconds'), false) as changed_now
        from payment_transactions t
        cross join lateral (
            select billing_is_of_wallet(t.status, t.amount, t.metadata) as of_wallet, now() - greatest(t.created_at, t.updated_at) as age
        ) f
        where t.organization_id = of_organization
    ) paid
    cross join lateral (
        select case when abs(w.balance) < 'infinity' then w.balance - (b.baseline + paid.completed) end as difference
    ) found
    where o.id = of_organization
$$;

CREATE FUNCTION billing_whole_hours(since timestamp with time zone, until timestamp with time zone) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select floor(extract(epoch from until - since) / 3600)::bigint $$;

CREATE FUNCTION billing_without_term(pid integer, began_at timestamp with time zone, application_name text, role name) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select coalesce(nullif(application_name, ''), 'a session without a name') || ' (pid ' || pid || ', role ' || role || ')'
    where not coalesce((
        select case
            when l.backend_pid is not null then l.backend_pid = pid and began_at <= l.elected_at
            else starts_with(application_name, 'billing elector ')
                and right(l.holder, length(application_name) - 16) = substr(application_name, 17)
        end
        from billing_leadership l), false)
$$;

CREATE TABLE billing_accepted_backlogs (
    id bigint NOT NULL,
    accepted_until timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    accepted_by text NOT NULL,
    reason text NOT NULL,
    organization_id uuid,
    instances bigint,
    owed numeric NOT NULL,
    instance_id uuid,
    accepted_from timestamp with time zone
);

COMMENT ON COLUMN billing_accepted_backlogs.instances IS 'number of instances accepted together; null in a row that names its instance';

COMMENT ON COLUMN billing_accepted_backlogs.owed IS 'the price of the accepted hours according to their open rows';

COMMENT ON COLUMN billing_accepted_backlogs.accepted_from IS 'the start of the instance''s oldest open row; earlier hours are not accepted';

ALTER TABLE billing_accepted_backlogs ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_accepted_backlogs_id_seq
);

CREATE VIEW billing_alert_facts AS
 SELECT charged_instances,
    failing_cycles,
    cut_short_cycles
   FROM billing_alert_facts() billing_alert_facts(charged_instances, failing_cycles, cut_short_cycles);

CREATE VIEW billing_backlogs AS
 SELECT organization_id,
    instance_id,
    label,
    hours,
    owed,
    since
   FROM billing_backlogs() billing_backlogs(organization_id, instance_id, label, hours, owed, since);

CREATE TABLE billing_batches (
    id bigint NOT NULL,
    run_id bigint NOT NULL,
    term bigint NOT NULL,
    written_at timestamp with time zone NOT NULL,
    instances bigint DEFAULT 0 NOT NULL,
    hours bigint DEFAULT 0 NOT NULL,
    amount numeric DEFAULT 0 NOT NULL,
    debts bigint DEFAULT 0 NOT NULL,
    failures bigint DEFAULT 0 NOT NULL,
    charged_in_part bigint DEFAULT 0 NOT NULL,
    suspended bigint DEFAULT 0 NOT NULL,
    failures_by_reason jsonb DEFAULT '{}'::jsonb NOT NULL
);

ALTER TABLE billing_batches ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_batches_id_seq
);

CREATE TABLE billing_commands (
    id bigint NOT NULL,
    command text NOT NULL,
    given_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    given_by text NOT NULL,
    reason text,
    term bigint,
    until timestamp with time zone,
    organization_id uuid,
    instance_id uuid,
    acknowledged_at timestamp with time zone,
    acknowledged_by text,
    finished_at timestamp with time zone,
    run_id bigint,
    refusal text,
    CONSTRAINT billing_commands_command_check CHECK ((command = ANY (ARRAY['pause'::text, 'resume'::text, 'trigger'::text, 'suspend'::text, 'unsuspend'::text, 'waive'::text, 'step-down'::text])))
);

COMMENT ON COLUMN billing_commands.term IS 'the newest term when the command was given';

COMMENT ON COLUMN billing_commands.until IS 'pause, suspend: when it ends, null for indefinitely. waive: the end of the waived hours';

COMMENT ON COLUMN billing_commands.acknowledged_at IS 'when a leader first read the command';

COMMENT ON COLUMN billing_commands.finished_at IS 'when the leader had carried the command out. A pause is finished once no batch is in progress';

COMMENT ON COLUMN billing_commands.run_id IS 'the run that carried the command out';

COMMENT ON COLUMN billing_commands.refusal IS 'why the leader refused the command';

ALTER TABLE billing_commands ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_commands_id_seq
);

CREATE TABLE billing_corrections (
    id bigint NOT NULL,
    made_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    made_by text NOT NULL,
    reason text NOT NULL,
    kind text NOT NULL,
    organization_id uuid NOT NULL,
    wallet_id uuid NOT NULL,
    difference numeric NOT NULL,
    amount numeric NOT NULL,
    explanation jsonb NOT NULL,
    CONSTRAINT billing_corrections_kind_check CHECK ((kind = ANY (ARRAY['correct'::text, 'accept'::text])))
);

COMMENT ON COLUMN billing_corrections.kind IS 'correct: the wallet moved by amount; accept: the baseline moved by amount';

COMMENT ON COLUMN billing_corrections.difference IS 'the difference before the correction';

ALTER TABLE billing_corrections ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_corrections_id_seq
);

CREATE TABLE billing_daemon_sightings (
    daemon_instance_id text NOT NULL,
    heartbeat_at timestamp with time zone,
    changed boolean DEFAULT false NOT NULL,
    since timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

COMMENT ON COLUMN billing_daemon_sightings.changed IS 'true if the heartbeat has changed since the first reading, so the daemon is alive';

COMMENT ON COLUMN billing_daemon_sightings.since IS 'when a leader first read this heartbeat';

CREATE TABLE billing_daemon_status (
    id integer NOT NULL,
    daemon_instance_id character varying(255) NOT NULL,
    status character varying(50) NOT NULL,
    last_run_at timestamp with time zone,
    last_run_success boolean,
    instances_billed integer DEFAULT 0,
    total_amount numeric(20,2) DEFAULT 0,
    total_hours numeric(20,2) DEFAULT 0,
    error_message text,
    started_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb,
    created_at timestamp with time zone DEFAULT now(),
    updated_at timestamp with time zone DEFAULT now()
);

COMMENT ON TABLE billing_daemon_status IS 'One row per billing process that has led. Built-in billing pauses while the newest heartbeat_at is younger than 90 minutes';

COMMENT ON COLUMN billing_daemon_status.daemon_instance_id IS 'pod:suffix in Kubernetes, else hostname-pid';

COMMENT ON COLUMN billing_daemon_status.status IS 'running, stopped or error';

COMMENT ON COLUMN billing_daemon_status.heartbeat_at IS 'written only by the leader, every 60 seconds';

CREATE SEQUENCE billing_daemon_status_id_seq
    AS integer;

ALTER SEQUENCE billing_daemon_status_id_seq OWNED BY billing_daemon_status.id;

CREATE VIEW billing_debts AS
 SELECT organization_id,
    instances,
    owed,
    since
   FROM billing_debts() billing_debts(organization_id, instances, owed, since);

CREATE VIEW billing_failures AS
 SELECT organization_id,
    reason,
    instances,
    since
   FROM billing_failures() billing_failures(organization_id, reason, instances, since);

CREATE TABLE billing_foreign_periods (
    period_id uuid NOT NULL,
    vps_instance_id uuid NOT NULL,
    billed_until timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL
);

COMMENT ON COLUMN billing_foreign_periods.period_id IS 'id of the row in vps_billing_cycles';

CREATE TABLE billing_guard (
    only_row boolean DEFAULT true NOT NULL,
    checked_until timestamp with time zone NOT NULL,
    CONSTRAINT billing_guard_only_row_check CHECK (only_row)
);

CREATE VIEW billing_history AS
 SELECT id,
    kind,
    term,
    holder,
    started_at,
    finished_at,
    EXTRACT(epoch FROM (finished_at - started_at)) AS seconds,
    outcome,
    cause,
    planned,
    instances,
    charged_in_part,
    hours,
    amount,
    debts,
    failures,
    failures_by_reason,
    suspended,
    vanished,
    error
   FROM billing_runs
  ORDER BY started_at DESC, id DESC;

CREATE VIEW billing_instance_debts AS
 SELECT organization_id,
    organization,
    slug,
    instance_id,
    label,
    provider_instance_id,
    hours,
    owed,
    since,
    next_hour,
    balance,
    pays_next_hour
   FROM billing_instance_debts() billing_instance_debts(organization_id, organization, slug, instance_id, label, provider_instance_id, hours, owed, since, next_hour, balance, pays_next_hour);

CREATE VIEW billing_last_day AS
 SELECT starts_at,
    cycles,
    instances,
    hours,
    amount,
    collected,
    seconds,
    debts,
    failures,
    failed
   FROM billing_last_day() billing_last_day(starts_at, cycles, instances, hours, amount, collected, seconds, debts, failures, failed);

CREATE TABLE billing_leadership (
    only_row boolean DEFAULT true NOT NULL,
    term bigint DEFAULT 0 NOT NULL,
    holder text,
    lock_name text,
    elected_at timestamp with time zone,
    bill_after timestamp with time zone,
    interval_minutes double precision,
    backend_pid integer,
    generation integer DEFAULT 1 NOT NULL,
    needs_version text,
    takeover_delay_seconds double precision,
    other_billers text DEFAULT 'stop'::text NOT NULL,
    resigned_term bigint,
    CONSTRAINT billing_leadership_only_row_check CHECK (only_row),
    CONSTRAINT billing_leadership_other_billers_check CHECK ((other_billers = ANY (ARRAY['stop'::text, 'warn'::text])))
);

COMMENT ON COLUMN billing_leadership.bill_after IS 'no cycle starts before this time, because the application''s own billing may have been running when this controller took over';

COMMENT ON COLUMN billing_leadership.interval_minutes IS 'BILLING_INTERVAL_MINUTES of the leader of this term';

COMMENT ON COLUMN billing_leadership.backend_pid IS 'pg_backend_pid() of the lock session that minted the term';

COMMENT ON COLUMN billing_leadership.generation IS 'the rules of billing that this database follows; a program of another generation does not contend';

COMMENT ON COLUMN billing_leadership.needs_version IS 'the oldest version of containerstacks-billing that follows these rules';

COMMENT ON COLUMN billing_leadership.takeover_delay_seconds IS 'the takeover delay while a takeover waits, counted from the newest period of another program; otherwise null';

COMMENT ON COLUMN billing_leadership.other_billers IS 'BILLING_OTHER_BILLERS of the leader of this term';

COMMENT ON COLUMN billing_leadership.resigned_term IS 'the newest term whose leader resigned. If a leader is lost, this is older than its term';

CREATE TABLE billing_lost_debts (
    id bigint NOT NULL,
    lost_at timestamp with time zone DEFAULT now() NOT NULL,
    deleted_by text DEFAULT SESSION_USER NOT NULL,
    organization_id uuid NOT NULL,
    instance_id uuid NOT NULL,
    label text,
    reason text,
    since timestamp with time zone NOT NULL,
    hours bigint NOT NULL,
    owed numeric NOT NULL
);

COMMENT ON TABLE billing_lost_debts IS 'open rows that were deleted together with their instance or organization';

ALTER TABLE billing_lost_debts ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_lost_debts_id_seq
);

CREATE TABLE billing_lost_periods (
    vps_instance_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    periods tstzmultirange NOT NULL,
    lost_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE billing_lost_periods IS 'billed periods that were deleted with an organization although their instances still exist';

CREATE VIEW billing_notices AS
 SELECT kind,
    halts,
    since,
    message
   FROM billing_notices() billing_notices(kind, halts, since, message);

CREATE TABLE billing_price_check (
    only_row boolean DEFAULT true NOT NULL,
    checked_at timestamp with time zone NOT NULL,
    CONSTRAINT billing_price_check_only_row_check CHECK (only_row)
);

CREATE TABLE billing_prices (
    key text NOT NULL,
    valid_from timestamp with time zone NOT NULL,
    monthly_price numeric,
    source text NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON COLUMN billing_prices.source IS 'plan: vps_plans.id matched; provider_plan: provider_plan_id matched; none: nothing matched';

CREATE VIEW billing_replicas AS
 SELECT instance_id,
    role,
    connected_at
   FROM billing_replicas() billing_replicas(instance_id, role, connected_at);

CREATE TABLE billing_schema_migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE VIEW billing_status AS
 SELECT leader,
    term,
    leading_since,
    standbys,
    next_cycle_at,
    waiting_for,
    running_since,
    last_completed_at,
    last_run,
    heartbeat_age_seconds,
    debts,
    owed,
    failures,
    suspended,
    checked_until,
    database_time
   FROM billing_status() billing_status(leader, term, leading_since, standbys, next_cycle_at, waiting_for, running_since, last_completed_at, last_run, heartbeat_age_seconds, debts, owed, failures, suspended, checked_until, database_time);

CREATE TABLE billing_suspensions (
    organization_id uuid NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    suspended_at timestamp with time zone DEFAULT now() NOT NULL,
    kind text DEFAULT 'guard'::text NOT NULL,
    until timestamp with time zone,
    CONSTRAINT billing_suspensions_kind_check CHECK ((kind = ANY (ARRAY['guard'::text, 'operator'::text])))
);

COMMENT ON COLUMN billing_suspensions.reason IS 'guard: the violated invariant, by its name in `containerstacks-billing audit`. operator: the operator''s reason';

COMMENT ON COLUMN billing_suspensions.kind IS 'guard: ends when an audit is clean. operator: ends with `unsuspend`, or at the time in until';

COMMENT ON COLUMN billing_suspensions.until IS 'when an operator''s suspension ends; null if only `unsuspend` ends it';

CREATE TABLE billing_terms (
    term bigint NOT NULL,
    holder text NOT NULL,
    minted_at timestamp with time zone NOT NULL,
    generation integer,
    pod jsonb
);

COMMENT ON COLUMN billing_terms.generation IS 'of the program that minted this term; null before migration 029';

COMMENT ON COLUMN billing_terms.pod IS 'namespace, name and uid of the pod that minted this term; null outside Kubernetes';

CREATE VIEW billing_uncharged AS
 SELECT organization_id,
    organization,
    slug,
    reason,
    instances,
    hours,
    owed,
    since,
    error
   FROM billing_uncharged() billing_uncharged(organization_id, organization, slug, reason, instances, hours, owed, since, error);

CREATE TABLE billing_wallet_baselines (
    wallet_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    baseline numeric NOT NULL,
    adopted_balance numeric NOT NULL,
    adopted_at timestamp with time zone DEFAULT now() NOT NULL,
    left_balance numeric,
    changed_at timestamp with time zone,
    checked_at timestamp with time zone,
    checked_completed numeric
)
WITH (fillfactor='70');

COMMENT ON COLUMN billing_wallet_baselines.left_balance IS 'the balance after the controller''s last charge; null before the first charge';

COMMENT ON COLUMN billing_wallet_baselines.changed_at IS 'when a charge found a balance other than left_balance; null once the wallet has been compared with its transactions';

COMMENT ON COLUMN billing_wallet_baselines.checked_at IS 'when the wallet last equalled its baseline plus its transactions';

COMMENT ON COLUMN billing_wallet_baselines.checked_completed IS 'the sum of the completed transactions at checked_at';

CREATE TABLE billing_wallet_differences (
    wallet_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    difference numeric NOT NULL,
    explanation jsonb NOT NULL,
    found_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    compared_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

COMMENT ON COLUMN billing_wallet_differences.difference IS 'what the wallet holds beyond baseline and completed transactions';

COMMENT ON COLUMN billing_wallet_differences.explanation IS 'the amounts that make up the difference, by kind';

ALTER TABLE ONLY billing_daemon_status ALTER COLUMN id SET DEFAULT nextval('billing_daemon_status_id_seq'::regclass);

ALTER TABLE ONLY billing_accepted_backlogs
    ADD CONSTRAINT billing_accepted_backlogs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_batches
    ADD CONSTRAINT billing_batches_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_commands
    ADD CONSTRAINT billing_commands_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_corrections
    ADD CONSTRAINT billing_corrections_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_daemon_sightings
    ADD CONSTRAINT billing_daemon_sightings_pkey PRIMARY KEY (daemon_instance_id);

ALTER TABLE ONLY billing_daemon_status
    ADD CONSTRAINT billing_daemon_status_daemon_instance_id_key UNIQUE (daemon_instance_id);

ALTER TABLE ONLY billing_daemon_status
    ADD CONSTRAINT billing_daemon_status_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_foreign_periods
    ADD CONSTRAINT billing_foreign_periods_pkey PRIMARY KEY (period_id);

ALTER TABLE ONLY billing_guard
    ADD CONSTRAINT billing_guard_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY billing_leadership
    ADD CONSTRAINT billing_leadership_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY billing_lost_debts
    ADD CONSTRAINT billing_lost_debts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_price_check
    ADD CONSTRAINT billing_price_check_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY billing_prices
    ADD CONSTRAINT billing_prices_pkey PRIMARY KEY (key, valid_from);

ALTER TABLE ONLY billing_runs
    ADD CONSTRAINT billing_runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_schema_migrations
    ADD CONSTRAINT billing_schema_migrations_pkey PRIMARY KEY (name);

ALTER TABLE ONLY billing_suspensions
    ADD CONSTRAINT billing_suspensions_pkey PRIMARY KEY (organization_id, kind);

ALTER TABLE ONLY billing_terms
    ADD CONSTRAINT billing_terms_pkey PRIMARY KEY (term);

ALTER TABLE ONLY billing_wallet_baselines
    ADD CONSTRAINT billing_wallet_baselines_pkey PRIMARY KEY (wallet_id);

ALTER TABLE ONLY billing_wallet_differences
    ADD CONSTRAINT billing_wallet_differences_pkey PRIMARY KEY (wallet_id);

CREATE INDEX billing_accepted_backlogs_instance ON billing_accepted_backlogs USING btree (instance_id, accepted_until);

CREATE INDEX billing_batches_run ON billing_batches USING btree (run_id);

CREATE INDEX billing_changed_wallets ON billing_wallet_baselines USING btree (changed_at) WHERE (changed_at IS NOT NULL);

CREATE INDEX billing_commands_open ON billing_commands USING btree (id) WHERE (finished_at IS NULL);

CREATE INDEX billing_corrections_organization ON billing_corrections USING btree (organization_id, made_at);

CREATE INDEX billing_foreign_periods_created_at ON vps_billing_cycles USING btree (created_at) WHERE (((status)::text = 'billed'::text) AND (NOT billing_is_ours(metadata)));

CREATE UNIQUE INDEX billing_ledger ON vps_billing_cycles USING btree (vps_instance_id, billing_period_start) WHERE (((status)::text = ANY ((ARRAY['billed'::character varying, 'refunded'::character varying])::text[])) AND billing_is_ours(metadata));

CREATE INDEX billing_lost_debts_organization ON billing_lost_debts USING btree (organization_id);

CREATE INDEX billing_lost_periods_instance ON billing_lost_periods USING btree (vps_instance_id);

CREATE UNIQUE INDEX billing_open_rows ON vps_billing_cycles USING btree (vps_instance_id, billing_period_start) WHERE (((status)::text = 'failed'::text) AND billing_is_ours(metadata));

CREATE INDEX billing_payable_debts ON vps_billing_cycles USING btree (organization_id, hourly_rate) WHERE (((status)::text = 'failed'::text) AND billing_is_ours(metadata) AND ((metadata ->> 'reason'::text) = 'insufficient_balance'::text));

CREATE INDEX billing_payments ON payment_transactions USING btree (id) WHERE billing_is_ours(metadata);

CREATE INDEX billing_runs_running ON billing_runs USING btree (id) WHERE (outcome = 'running'::text);

CREATE INDEX billing_runs_started_at ON billing_runs USING btree (started_at);

CREATE INDEX idx_billing_daemon_status_heartbeat ON billing_daemon_status USING btree (heartbeat_at);

CREATE INDEX idx_billing_daemon_status_instance ON billing_daemon_status USING btree (daemon_instance_id);

CREATE TRIGGER billing_keep_lost_debts AFTER DELETE ON vps_billing_cycles REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION billing_keep_lost_debts();

CREATE TRIGGER billing_keep_lost_periods AFTER DELETE ON vps_billing_cycles REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION billing_keep_lost_periods();

CREATE TRIGGER billing_refuse_other_generation BEFORE INSERT ON billing_terms FOR EACH ROW EXECUTE FUNCTION billing_refuse_other_generation();
