"""The demo's independent check of the books: queries of its own, which share nothing with the controller's."""

# `before` keeps where billing stood for each instance when the story began; a new one starts at its creation.
SETUP = """
    create temporary table before as select id, coalesce(last_billed_at, created_at) as since from vps_instances;
    create temporary view instance as
        select i.*, coalesce(b.since, i.created_at) as since, p.name as plan
        from vps_instances i left join before b using (id) left join vps_plans p on p.id::text = i.plan_id;
    create temporary view period as
        select c.*, label, plan, total_amount as amount, note.*, monthly_price * hours / 730 as by_hand
        from vps_billing_cycles c join instance i on i.id = c.vps_instance_id, jsonb_to_record(c.metadata)
            as note (hours bigint, run bigint, price_source text, reason text, owed numeric, monthly_price numeric)
"""
WALLETS = "select sum(balance) as balance from wallets"
DUE = "select count(*) from vps_instances where coalesce(last_billed_at, created_at) <= now() - interval '1 hour'"
# Copies of instances, ordered hours ago and never billed. Their organizations all have wallets.
ADD_INSTANCES = """
    insert into vps_instances (organization_id, plan_id, provider_instance_id, label, status, created_at, updated_at)
    select organization_id, plan_id, provider_instance_id || '-2', label || '-2', 'running', moment, moment
    from (
        select *, now() - interval '1 hour' * (1.2 + 9 * random()) as moment from vps_instances
        where organization_id in (select organization_id from wallets) order by id limit %s
    ) copied
"""
# Two in three of the wallets that are short get what they owe, and $1,500 more.
TOP_UP = """
    with owing as (
        select organization_id, sum(owed) as owed, row_number() over (order by organization_id) as number
        from period where status = 'failed' and reason = 'insufficient_balance' group by organization_id
    ), paid as (
        insert into payment_transactions
            (organization_id, amount, payment_method, payment_provider, status, description)
        select organization_id, ceil(owed) + 1500, 'card', 'stripe', 'completed', 'Wallet top-up'
        from owing where number % 3 <> 0
        returning organization_id, amount
    ), filled as (
        update wallets w set balance = w.balance + amount from paid where paid.organization_id = w.organization_id
    )
    select sum(amount) as amount, count(*) as wallets from paid
"""
TERM = "select term from billing_leadership"
FIRST_BATCH = "select min(written_at) as moment from billing_batches where term = %s having count(*) > 0"
NEWEST_CYCLE = "select max(id) as id from billing_runs where term = %s"
CYCLE = """
    select id, outcome, (select coalesce(sum(instances), 0)::bigint from billing_batches where run_id = r.id) instances
    from billing_runs r where id = %s
"""
PERIODS = "select count(*) from period where status = 'billed' and run = %s"
# The hours charged must be those between where an instance stood before and where it stands now.
WRONGLY_CHARGED = """
    select count(*) from instance i left join (
        select vps_instance_id as id, sum(hours) as hours from period where status = 'billed' group by 1
    ) billed using (id)
    where 3600 * coalesce(hours, 0) <> extract(epoch from coalesce(last_billed_at, created_at) - since)
"""
TOTALS = """
    select (select sum(balance) from wallets) as wallets,
        (select -sum(amount) from payment_transactions where payment_method = 'wallet_debit') as debits,
        (select sum(floor(extract(epoch from moment - since) / 3600))::bigint from instance, (
            select max(started_at) as moment from billing_runs where outcome = 'completed'
        ) as_of where since <= moment) as due,
        sum(amount) filter (where status = 'billed') as charges,
        count(*) filter (where status = 'billed') as periods,
        count(*) filter (where status = 'billed' and abs(amount - by_hand) >= 0.01) as off_price,
        sum(hours) filter (where status = 'billed') as charged,
        sum(hours) filter (where status = 'failed') as unpaid,
        sum(owed) filter (where reason = 'insufficient_balance') as owed,
        count(*) filter (where reason = 'insufficient_balance') as short,
        count(*) filter (where reason = 'wallet_missing') as without_wallet,
        count(*) filter (where status = 'failed' and reason not in ('insufficient_balance', 'wallet_missing')) as others
    from period
"""
# A charge at a plan's price and one at the default: a few days long, and exactly the sum by hand, rounded.
EXAMPLES = """
    select distinct on (price_source = 'default') * from period
    where status = 'billed' and (plan is not null or price_source = 'default')
    order by price_source = 'default', amount = round(by_hand, 2) desc, hours between 24 and 99 desc, hours desc, id
"""
