-- What the operator's page shows beside the status: the cycles of the last day, and the organizations that could not be charged.

-- The cycles that began in the last 24 hours, oldest first, in bins of at least 15 minutes: a cycle that runs every minute would
-- fill the page. starts_at is the start of the bin's first run. An instance that fails in every cycle counts once, so failures and
-- debts are the highest of the bin; instances, hours and amount are sums. `collected` is the part of the amount that collections of
-- debts charged between two cycles.
create or replace function billing_last_day()
returns table (
    starts_at timestamptz, cycles bigint, instances bigint, hours bigint, amount numeric, collected numeric,
    seconds double precision, debts bigint, failures bigint, failed boolean
)
language sql stable set jit = off as
$$
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
create or replace view billing_last_day as select * from billing_last_day();

-- Organizations with hours that could not be charged, by reason. The reason is insufficient_balance for a debt, and else a
-- failure or a suspension. `error` is the database's message for one of the instances, where the reason is `error`.
create or replace function billing_uncharged()
returns table (
    organization_id uuid, organization text, slug text, reason text, instances bigint, hours numeric, owed numeric, since timestamptz,
    error text
)
language sql stable as
$$
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
create or replace view billing_uncharged as select * from billing_uncharged();

insert into billing_schema_migrations (name) values ('046_billing_pages') on conflict do nothing;
