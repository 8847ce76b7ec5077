-- Who leads: the term is the fencing token. See the docstring of controller/election.

-- One row. A new leader increments the term. Every transaction that writes money locks this row `for share`, so it can
-- neither start nor commit after a newer term has been minted.
create table if not exists billing_leadership (
    only_row boolean primary key default true check (only_row),
    term bigint not null default 0,
    holder text,
    lock_name text,
    elected_at timestamptz,
    bill_after timestamptz
);
comment on column billing_leadership.bill_after is
    'no cycle starts before this time: the application''s own billing may still have been running at takeover';
insert into billing_leadership (only_row) values (true) on conflict do nothing;

-- Every term ever minted. The audit compares each write with the time at which its term ended.
create table if not exists billing_terms (
    term bigint primary key,
    holder text not null,
    minted_at timestamptz not null
);

insert into billing_schema_migrations (name) values ('013_billing_leadership') on conflict do nothing;
