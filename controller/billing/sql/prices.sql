-- The price history of migration 027.

-- name: record_prices
-- Records what plan lookup says now where it differs from the newest record. Needs the fence; runs when a cycle begins.
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
-- Keys of instances that no plan has ever matched. A plan that matches one later is then a change of its price.
insert into billing_prices (key, valid_from, monthly_price, source)
select key, '-infinity', null, 'none' from unnest(%(keys)s::text[]) as k (key)
on conflict do nothing
