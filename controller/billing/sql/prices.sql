-- The price history of migration 027.

-- name: record_prices
-- Records the results of plan lookup that differ from the newest records. Needs the fence. Runs when a cycle begins.
-- A change that committed after this transaction began is also visible. Dated by now(), it would apply too early.
with changed as (
    insert into billing_prices (key, valid_from, monthly_price, source)
    select c.key,
        case when c.valid_from = now() and p.updated_at > now() and p.updated_at <= clock_timestamp() then p.updated_at
            else c.valid_from end,
        c.monthly_price, c.source
    from billing_price_changes() c
    left join billing_plan_lookup() p on p.key = c.key
    on conflict (key, valid_from) do update set monthly_price = excluded.monthly_price, source = excluded.source
    returning key
)
insert into billing_price_check (checked_at)
select now() from (select count(*) from changed) as recorded
on conflict (only_row) do update set checked_at = excluded.checked_at

-- name: record_unmatched_keys
-- Records the plan keys that no plan has ever matched. If a plan matches one later, that counts as a change of its price.
insert into billing_prices (key, valid_from, monthly_price, source)
select key, '-infinity', null, 'none' from unnest(%(keys)s::text[]) as k (key)
on conflict do nothing
