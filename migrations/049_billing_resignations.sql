-- How the previous leader ended, so that its successor can say whom it follows and why.

-- A leader that resigns writes its term here before it releases the lock. A leader that is lost writes nothing.
alter table billing_leadership add column if not exists resigned_term bigint;
comment on column billing_leadership.resigned_term is 'the newest term whose leader resigned; a lost leader leaves an older one';

insert into billing_schema_migrations (name) values ('049_billing_resignations') on conflict do nothing;
