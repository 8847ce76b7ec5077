-- Plausible ContainerStacks rows. The parameters that sample.py sets determine everything but the time of day.

-- A pseudorandom number in [0, 1) for a row, the same in every run with one seed. Each use has its own `salt`.
create function pg_temp.chance(row_number bigint, salt text) returns double precision
    language sql stable as $$
    select (hashint8extended(row_number, hashtextextended(salt, current_setting('sample.seed')::bigint))
        & 9007199254740991)::double precision / 9007199254740992
$$;
create function pg_temp.row_id(kind text, row_number bigint) returns uuid
    language sql stable as $$ select md5(current_setting('sample.seed') || ':' || kind || ':' || row_number)::uuid $$;

-- The provider's name of a plan is not unique: the last plan is a retired one with an older price.
insert into vps_plans (id, name, provider_plan_id, base_price, markup_price, active, created_at)
select pg_temp.row_id('plan', number), name, 'shared-' || provider_name, base, markup, number < 12,
    now() - case when number < 12 then interval '400 days' else interval '900 days' end
from unnest(
    '{Nano,Micro,Micro NVMe,Small,Small NVMe,Medium,Medium NVMe,Large,Large NVMe,Huge,Huge NVMe,Small (2023)}'::text[],
    '{nano,1c-1g,1c-1g-nvme,1c-2g,1c-2g-nvme,2c-4g,2c-4g-nvme,4c-8g,4c-8g-nvme,6c-16g,6c-16g-nvme,1c-2g}'::text[],
    '{2.50,4,5,8,10,16,20,32,40,64,80,7}'::numeric[], '{0.50,1,1,2,2,4,4,8,8,16,16,2}'::numeric[]
) with ordinality as plan (name, provider_name, base, markup, number);

insert into users (id, email, password_hash, name, created_at)
select pg_temp.row_id('user', number), 'owner' || number || '@example.com', '!', 'Owner ' || number,
    now() - interval '300 days'
from generate_series(1, current_setting('sample.organizations')::bigint) as number;

insert into organizations (id, name, slug, owner_id, created_at)
select pg_temp.row_id('organization', number), 'Organization ' || number, 'organization-' || number,
    pg_temp.row_id('user', number), now() - interval '300 days'
from generate_series(1, current_setting('sample.organizations')::bigint) as number;

-- Each organization has at least one instance. A larger skew gives more of the others to the first organizations.
-- Every twelfth organization, from the fourth on, is short of money and was last billed days ago. A few instances are new
-- and were never billed, and a few were billed within the hour.
insert into vps_instances (
    id, organization_id, plan_id, provider_instance_id, label, status, ip_address, created_at, updated_at,
    last_billed_at
)
select pg_temp.row_id('instance', number), pg_temp.row_id('organization', organization_number),
    case number
        when 2 then pg_temp.row_id('plan', 0)::text -- a plan that is gone
        when 3 then 'shared-1c-2g' -- the provider's name instead of the id
        else pg_temp.row_id('plan', 1 + floor(11 * power(pg_temp.chance(number, 'plan'), 1.7))::bigint)::text
    end,
    40000000 + number, 'vps-' || 1 + number % 5000, -- labels are not unique
    case when status < 0.90 then 'running' when status < 0.97 then 'stopped' when status < 0.99 then 'offline'
        else 'error' end,
    '10.0.0.0'::inet + number % 16777216, now() - created_ago, now() - coalesce(billed_ago, created_ago),
    now() - billed_ago
from (
    select number, organization_number, pg_temp.chance(number, 'status') as status,
        case when billed < 0.05 then interval '2 days' * (0.05 + 0.95 * age)
            else interval '5 days' + interval '85 days' * age end as created_ago,
        case when billed < 0.05 then null
            when organization_number % 12 = 4 then interval '1 hour' * (24 + 48 * hours)
            when billed < 0.08 then interval '1 hour' * (0.1 + 0.8 * hours)
            else interval '1 hour' * (1.1 + 4.8 * hours) end as billed_ago
    from (
        select number, pg_temp.chance(number, 'billed') as billed, pg_temp.chance(number, 'hours') as hours,
            pg_temp.chance(number, 'age') as age,
            case when number <= organizations then number else 1 + floor(
                organizations * power(pg_temp.chance(number, 'owner'), current_setting('sample.skew')::float8)
            )::bigint end as organization_number
        from generate_series(1, current_setting('sample.instances')::bigint) as number,
            cast(current_setting('sample.organizations') as bigint) as organizations
    ) as drawn
) as aged;

-- Each balance is the sum of its organization's payments. The last organization has no wallet.
with owed as (
    select i.organization_id, sum(coalesce(p.base_price + p.markup_price, 20)) as monthly, sum(
        coalesce(p.base_price + p.markup_price, 20) / 730
        * floor(extract(epoch from now() - coalesce(last_billed_at, i.created_at))::numeric / 3600)
    ) as due
    from vps_instances as i
    left join vps_plans as p on p.id::text = i.plan_id
    group by i.organization_id
),
balances as (
    select number, organization_id, round(
        case when number % 12 = 4 then due * (0.2 + 0.6 * pg_temp.chance(number, 'short'))::numeric
            else least(10 + 3 * due + monthly * (0.5 + 2 * pg_temp.chance(number, 'topup'))::numeric, 90000000) end, 2
    ) as balance
    from generate_series(1, current_setting('sample.organizations')::bigint - 1) as number
    inner join owed on organization_id = pg_temp.row_id('organization', number)
),
paid as (
    insert into payment_transactions (
        id, organization_id, amount, payment_method, payment_provider, provider_transaction_id, status, description,
        created_at, updated_at
    )
    select pg_temp.row_id('topup', number), organization_id, balance, 'card', 'stripe', 'pi_sample_' || number,
        'completed', 'Wallet top-up', now() - interval '3 days', now() - interval '3 days'
    from balances
    where balance > 0
)
insert into wallets (id, organization_id, balance, created_at, updated_at)
select pg_temp.row_id('wallet', number), organization_id, balance, now() - interval '300 days',
    now() - interval '3 days'
from balances;

-- Top-ups that did not complete. They don't count.
insert into payment_transactions (id, organization_id, amount, payment_method, payment_provider, status, description)
select pg_temp.row_id('attempt', number), pg_temp.row_id('organization', number), 25.00, 'card', 'stripe',
    case when number % 40 = 1 then 'pending' else 'failed' end, 'Wallet top-up'
from generate_series(1, current_setting('sample.organizations')::bigint, 20) as number;

drop function pg_temp.chance(bigint, text), pg_temp.row_id(text, bigint);
analyze users, organizations, wallets, vps_plans, vps_instances, payment_transactions;
