-- Functions for what the application reads from the rows of a charge.

-- The description of a payment. The application's clean-up deletes payments whose text contains certain words, so a label with
-- one of them is replaced by the beginning of the instance's id.
create or replace function billing_charge_description(label text, instance_id uuid, hours bigint) returns text
language sql immutable parallel safe as
$$
    select 'VPS ' || case
            when label is null then instance_id::text
            when label ~* 'container|caas|easypanel|dokploy' then left(instance_id::text, 8)
            else label
        end || ', ' || hours::text || ' h'
$$;

-- The hours and the price in a period's metadata. The application's invoices read hours_charged, base_hourly_rate and vps_label.
-- base_hourly_rate is null if the price can't be charged. The function is stable, as jsonb_build_object is, so that the planner
-- can inline it.
create or replace function billing_period_facts(label text, hours bigint, monthly_price numeric, price_source text) returns jsonb
language sql stable parallel safe as
$$
    select jsonb_build_object('hours', hours, 'monthly_price', monthly_price, 'price_source', price_source,
        'hours_charged', hours, 'vps_label', label,
        'base_hourly_rate', case when billing_is_price(monthly_price) then round(monthly_price / 730, 4) end)
$$;

-- A UUID of version 7, which sorts by time: 48 bits of milliseconds, the version, 12 bits of the fraction of a millisecond, and
-- random bits. New rows go to the right end of an index. `moment` is used once, so that the planner can inline the function.
create or replace function billing_time_ordered_uuid(moment timestamptz) returns uuid
language sql volatile parallel safe as
$$
    select (overlay(lpad(to_hex((extract(epoch from moment) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
        || right(gen_random_uuid()::text, 17))::uuid
$$;

insert into billing_schema_migrations (name) values ('033_billing_application_rows') on conflict do nothing;
