-- The status table that the application's health page and its built-in billing read.
-- The application may have created it already; then this migration adds only what is missing.
--
-- Every migration goes forward only, is safe to run twice, and can be applied by hand with `psql -f`.

create table if not exists billing_schema_migrations (
    name text primary key,
    applied_at timestamptz not null default now()
);

create table if not exists billing_daemon_status (
    id serial primary key,
    daemon_instance_id varchar(255) not null unique,
    status varchar(50) not null,
    last_run_at timestamptz,
    last_run_success boolean,
    instances_billed integer default 0,
    total_amount numeric(10, 2) default 0,
    total_hours numeric(10, 2) default 0,
    error_message text,
    started_at timestamptz,
    heartbeat_at timestamptz,
    metadata jsonb default '{}',
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

create index if not exists idx_billing_daemon_status_heartbeat on billing_daemon_status (heartbeat_at);
create index if not exists idx_billing_daemon_status_instance on billing_daemon_status (daemon_instance_id);

comment on table billing_daemon_status is
    'One row per billing process that has led. Built-in billing pauses while the newest heartbeat_at is younger than 90 minutes';
comment on column billing_daemon_status.daemon_instance_id is 'hostname-pid';
comment on column billing_daemon_status.status is 'running, stopped or error';
comment on column billing_daemon_status.heartbeat_at is 'written only by the leader, every 60 seconds';

insert into billing_schema_migrations (name) values ('012_billing_daemon_status') on conflict do nothing;
