-- Wallets that differ from their transactions: the check after each cycle, and the command `reconcile`. Migration 040 compares.

-- name: wallets_to_compare
-- Organizations whose wallet another program has changed since our last charge, oldest first. Then those with a known
-- difference, which may be gone.
select organization_id from (
    (select b.organization_id, 1 as kind, b.changed_at as since
     from billing_wallet_baselines b
     where b.changed_at is not null
     order by b.changed_at
     limit %(limit)s)
    union all
    (select d.organization_id, 2, d.compared_at
     from billing_wallet_differences d
     where not exists (select from billing_wallet_baselines b where b.wallet_id = d.wallet_id and b.changed_at is not null)
     order by d.compared_at
     limit %(limit)s)
) listed
order by kind, since
limit %(limit)s

-- name: compare_wallet
select * from billing_wallet_comparison(%(organization)s)

-- name: record_comparison
-- Stores the result of a comparison, unless the wallet has been charged since. `new` is true if the difference was not known.
with settled as materialized (
    update billing_wallet_baselines b
    set changed_at = null,
        checked_at = case when %(difference)s::numeric = 0 then %(compared_at)s else b.checked_at end,
        checked_completed = case when %(difference)s::numeric = 0 then %(completed)s else b.checked_completed end
    where b.wallet_id = %(wallet_id)s and b.left_balance is not distinct from %(left_balance)s
    returning b.wallet_id
), known as (
    select d.difference from billing_wallet_differences d where d.wallet_id = %(wallet_id)s
), gone as (
    delete from billing_wallet_differences d
    where %(difference)s::numeric = 0 and d.wallet_id in (select wallet_id from settled)
), stored as (
    insert into billing_wallet_differences as d (wallet_id, organization_id, difference, explanation)
    select s.wallet_id, %(organization)s, %(difference)s, %(explanation)s from settled s where %(difference)s::numeric <> 0
    on conflict (wallet_id) do update
    set difference = excluded.difference, explanation = excluded.explanation, compared_at = clock_timestamp(),
        found_at = case when d.difference = excluded.difference then d.found_at else excluded.found_at end
    returning d.difference
)
select exists (select from stored) and (select difference from stored) is distinct from (select difference from known) as new

-- name: forget_comparison
-- For a wallet that can't be compared: it or its organization was deleted, it is a duplicate, or its balance isn't a number.
with gone as (
    delete from billing_wallet_differences where organization_id = %(organization)s
)
update billing_wallet_baselines set changed_at = null where organization_id = %(organization)s and changed_at is not null

-- name: postpone_comparison
-- Runs after a failed comparison. Moves this wallet behind the others, so that it doesn't keep them from being compared.
with postponed as (
    update billing_wallet_differences set compared_at = clock_timestamp() where organization_id = %(organization)s
)
update billing_wallet_baselines set changed_at = clock_timestamp() where organization_id = %(organization)s and changed_at is not null

-- name: begin_correction
-- Corrections of one organization run one after the other, because one may change the wallet and another the baseline. So each locks
-- the organization first, and then only the row that it changes. Batches lock these two in either order, so locking both could deadlock.
select id from organizations where id = %(organization)s for no key update

-- name: lock_wallet
select id from wallets where organization_id = %(organization)s order by id for no key update

-- name: lock_baseline
select b.wallet_id
from billing_wallet_baselines b
join wallets w on w.id = b.wallet_id
where w.organization_id = %(organization)s
for update of b

-- name: move_wallet
update wallets set balance = balance + %(amount)s, updated_at = now() where id = %(wallet_id)s returning balance

-- name: move_baseline
update billing_wallet_baselines set baseline = baseline + %(amount)s where wallet_id = %(wallet_id)s returning baseline

-- name: record_correction
insert into billing_corrections (made_by, reason, kind, organization_id, wallet_id, difference, amount, explanation)
values (%(made_by)s || ' (role ' || current_user || ')', %(reason)s, %(kind)s, %(organization)s, %(wallet_id)s, %(difference)s,
    %(amount)s, %(explanation)s)

-- name: corrections
select made_at, made_by, kind, amount, difference, reason
from billing_corrections
where organization_id = %(organization)s
order by made_at desc, id desc
limit %(limit)s
