-- The part of the ContainerStacks application's schema that billing uses. The application owns the real one.
-- billing_daemon_status is missing here, because migration 012 creates it.

-- The application uses uuid-ossp. Some servers don't have it.
do $$
begin
    create extension if not exists "uuid-ossp";
exception when undefined_file or feature_not_supported then
    create function uuid_generate_v4() returns uuid language sql volatile parallel safe as 'select gen_random_uuid()';
end
$$;

create function update_updated_at_column() returns trigger
    language plpgsql as 'begin new.updated_at = now(); return new; end';
create table users (
    id uuid primary key default uuid_generate_v4(), email varchar(255) not null unique,
    password_hash varchar(255) not null, name varchar(255),
    role varchar(50) not null default 'user' check (role in ('admin', 'user'))
);
create table organizations (
    id uuid primary key default uuid_generate_v4(), name varchar(255) not null, slug varchar(255) not null unique,
    owner_id uuid not null references users (id), settings jsonb default '{}'
);
-- organization_id is not unique, because the application did not declare it so.
create table wallets (
    id uuid primary key default uuid_generate_v4(),
    organization_id uuid not null references organizations (id) on delete cascade,
    balance numeric(10, 2) default 0, currency varchar(3) default 'USD'
);
create table vps_plans (
    id uuid primary key default uuid_generate_v4(), name varchar(255) not null, provider_plan_id varchar(255) not null,
    base_price numeric(10, 2), markup_price numeric(10, 2) default 0, specifications jsonb default '{}',
    active boolean default true
);
-- plan_id is text without a foreign key. It holds a vps_plans.id or a provider_plan_id.
create table vps_instances (
    id uuid primary key default uuid_generate_v4(),
    organization_id uuid not null references organizations (id) on delete cascade,
    plan_id varchar(255), provider_instance_id varchar(255), label varchar(255),
    status varchar(50) default 'provisioning' check (status in (
        'provisioning', 'booting', 'running', 'rebooting', 'stopping', 'stopped', 'offline', 'suspended', 'restoring',
        'deleting', 'error'
    )),
    ip_address inet, configuration jsonb default '{}', last_billed_at timestamptz
);
create table payment_transactions (
    id uuid primary key default uuid_generate_v4(),
    organization_id uuid not null references organizations (id) on delete cascade,
    amount numeric(10, 2) not null, currency varchar(3) default 'USD',
    payment_method varchar(50), payment_provider varchar(50), provider_transaction_id varchar(255),
    status varchar(50) not null default 'pending' check (status in ('pending', 'completed', 'failed', 'refunded')),
    description text, metadata jsonb default '{}'
);
create table vps_billing_cycles (
    id uuid primary key default uuid_generate_v4(),
    vps_instance_id uuid not null references vps_instances (id) on delete cascade,
    organization_id uuid not null references organizations (id) on delete cascade,
    billing_period_start timestamptz not null, billing_period_end timestamptz not null,
    hourly_rate numeric(10, 4) not null, total_amount numeric(10, 2) not null,
    status varchar(50) not null default 'pending' check (status in ('pending', 'billed', 'failed', 'refunded')),
    payment_transaction_id uuid references payment_transactions (id), metadata jsonb default '{}'
);

-- Every table records when its rows were created and changed.
do $$
declare
    name text;
begin
    foreach name in array array[
        'users', 'organizations', 'wallets', 'vps_plans', 'vps_instances', 'payment_transactions', 'vps_billing_cycles'
    ]
    loop
        execute format(
            'alter table %1$I add created_at timestamptz default now(), add updated_at timestamptz default now();'
            'create trigger update_%1$s_updated_at before update on %1$I '
            'for each row execute function update_updated_at_column()', name
        );
    end loop;
end
$$;
create index idx_organizations_owner_id on organizations (owner_id);
create index idx_wallets_organization_id on wallets (organization_id);
create index idx_vps_instances_organization_id on vps_instances (organization_id);
create index idx_vps_instances_status on vps_instances (status);
create index idx_vps_instances_last_billed_at on vps_instances (last_billed_at);
create index idx_payment_transactions_organization_id on payment_transactions (organization_id);
create index idx_payment_transactions_status on payment_transactions (status);
create index idx_payment_transactions_created_at on payment_transactions (created_at);
create index idx_vps_billing_cycles_vps_instance_id on vps_billing_cycles (vps_instance_id);
create index idx_vps_billing_cycles_organization_id on vps_billing_cycles (organization_id);
create index idx_vps_billing_cycles_period on vps_billing_cycles (billing_period_start, billing_period_end);
create index idx_vps_billing_cycles_status on vps_billing_cycles (status);
create index idx_vps_billing_cycles_payment_transaction_id on vps_billing_cycles (payment_transaction_id);
comment on table organizations is 'containerstacks-billing sample';
