-- Adoption records, for each wallet, its balance minus its completed transactions at first sight: the baseline. From then
-- on balance = baseline + sum of completed transactions, which the audit checks. One statement reads both from one
-- snapshot, so a concurrent top-up counts in both or in neither. Wallets created later are adopted when they are first
-- charged (adopt_wallets). Wallets that are duplicates or have an unusable balance are adopted once they have been repaired.

create table if not exists billing_wallet_baselines (
    wallet_id uuid primary key,
    organization_id uuid not null,
    baseline numeric not null,
    adopted_balance numeric not null,
    adopted_at timestamptz not null default now()
);

insert into billing_wallet_baselines (wallet_id, organization_id, baseline, adopted_balance)
select w.id, w.organization_id, w.balance - coalesce(sum(t.amount), 0), w.balance
from (
    -- counted rather than compared with each other: the planner expects one row of such a comparison, and would then read all
    -- transactions for each wallet
    select id, organization_id, balance, count(*) over (partition by organization_id) as wallets from wallets
) w
left join payment_transactions t on t.organization_id = w.organization_id
    and t.status = 'completed' and abs(t.amount) < 'infinity' and (t.metadata ->> 'wallet_type') is null  -- billing_is_of_wallet
where w.wallets = 1 and abs(w.balance) < 'infinity'
    -- adopt only once: applying this file again by hand must not move a baseline
    and not exists (select from billing_schema_migrations where name = '015_billing_wallet_baselines')
group by w.id, w.organization_id, w.balance
on conflict do nothing;

insert into billing_schema_migrations (name) values ('015_billing_wallet_baselines') on conflict do nothing;
