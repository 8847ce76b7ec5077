-- Adoption: what each wallet held beyond its completed transactions when the controller first saw it. From then on
-- balance = baseline + sum of completed transactions, which the audit checks. One statement reads both from one
-- snapshot, so a top-up that commits meanwhile is in both or in neither. Wallets made later are adopted when they
-- are first charged (adopt_wallets); duplicates and unusable balances when they have been put right.

create table if not exists billing_wallet_baselines (
    wallet_id uuid primary key,
    organization_id uuid not null,
    baseline numeric not null,
    adopted_balance numeric not null,
    adopted_at timestamptz not null default now()
);

insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)
select w.id, w.organization_id, w.balance - coalesce(t.completed, 0), w.balance
from wallets w
left join (
    select organization_id, sum(amount) as completed
    from payment_transactions
    where status = 'completed'
    group by organization_id
) t on t.organization_id = w.organization_id
where w.balance is not null
    and w.balance <> 'NaN'
    and not exists (
        select from wallets other where other.organization_id = w.organization_id and other.id <> w.id
    )
    -- adopted once: applying this file again by hand must not move a baseline
    and not exists (select from billing_schema_migrations where name = '015_billing_wallet_baselines')
on conflict do nothing;

insert into billing_schema_migrations (name) values ('015_billing_wallet_baselines') on conflict do nothing;
