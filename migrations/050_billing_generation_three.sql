-- Generation 3: suspensions by operators, waivers, backlogs and wallet differences belong to the rules of billing.

-- Programs of generation 2 don't know these rules. They would end an operator's suspension, charge a backlog that no operator has
-- accepted, and mark every wallet that they charge as changed by another program. As in migration 029, raising the generation
-- mints a term, so a leader of generation 2 is deposed once its batches in hand have committed.
do $$
begin
    lock table billing_leadership in exclusive mode;
    with raised as (
        update billing_leadership
        set generation = 3, needs_version = '0.2.0',
            term = case when term > 0 then term + 1 else term end,
            holder = case when term > 0 then 'migration 050' end,
            elected_at = case when term > 0 then clock_timestamp() end
        where generation < 3
        returning *
    )
    insert into billing_terms (term, holder, minted_at, generation)
    select term, holder, elected_at, 3 from raised where term > 0;
end
$$;

insert into billing_schema_migrations (name) values ('050_billing_generation_three') on conflict do nothing;
