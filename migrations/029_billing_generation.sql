-- Generations: the number of the billing rules that this database follows.

-- A migration that changes how charges are calculated or who may write them raises the generation and mints a term in the
-- same transaction. That deposes the leader at once. Afterwards no program of another generation can mint a term, so two sets
-- of rules never charge the same hours. Programs of one generation run side by side.
alter table billing_leadership
    add column if not exists generation integer not null default 1,
    add column if not exists needs_version text;
comment on column billing_leadership.generation is 'the rules of billing that this database follows; a program of another generation does not contend';
comment on column billing_leadership.needs_version is 'the oldest version of containerstacks-billing that follows these rules';

alter table billing_terms add column if not exists generation integer;
comment on column billing_terms.generation is 'of the program that minted this term; null before migration 029';

-- Versions from before this migration would mint a term without a generation. This trigger refuses the term, which keeps them
-- from leading. They log its message and don't become ready.
create or replace function billing_refuse_other_generation() returns trigger
language plpgsql as
$$
declare
    leadership billing_leadership;
begin
    select * into strict leadership from billing_leadership;
    if new.generation is distinct from leadership.generation then
        raise exception 'this database follows the billing rules of generation %, this program those of generation %: use containerstacks-billing % or newer, as it ran the migration',
            leadership.generation, coalesce(new.generation, 1), leadership.needs_version
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    return new;
end
$$;
create or replace trigger billing_refuse_other_generation before insert on billing_terms
    for each row execute function billing_refuse_other_generation();

-- If no replica has ever led on this database, there is no leader to depose. Like a mint, raising the term waits for batches in
-- hand.
do $$
begin
    lock table billing_leadership in exclusive mode;
    with raised as (
        update billing_leadership
        set generation = 2, needs_version = '0.1.0',
            term = case when term > 0 then term + 1 else term end,
            holder = case when term > 0 then 'migration 029' end,
            elected_at = case when term > 0 then clock_timestamp() end
        where generation < 2
        returning *
    )
    insert into billing_terms (term, holder, minted_at, generation)
    select term, holder, elected_at, 2 from raised where term > 0;
end
$$;

insert into billing_schema_migrations (name) values ('029_billing_generation') on conflict do nothing;
