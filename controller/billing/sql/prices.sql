-- The price history of migration 027.

-- name: record_prices
-- Records the results of plan lookup that differ from the newest records. Needs the fence. Runs when a cycle begins.
with changed as (
    insert into billing_prices (key, valid_from, monthly_price, source)
    select key, valid_from, monthly_price, source from billing_price_changes()
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
