-- The controller's own tables, functions and indexes after all migrations. Written by `make schema`; never applied.

CREATE FUNCTION billing_affordable_hours(balance numeric, monthly_prices numeric[], period_starts timestamp with time zone[], hours bigint[]) RETURNS bigint[]
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$
declare
    remaining numeric := greatest(balance, 0);
    affordable bigint[] := '{}';
    instance record;
    cost numeric;
    paid bigint;
    a_month constant numeric := 2628000000000;  -- microseconds
    bound numeric;
    step numeric;
begin
    for instance in
        select * from unnest(monthly_prices, period_starts, hours) as i (monthly_price, period_start, hours)
    loop
        paid := instance.hours;
        cost := billing_charge(instance.monthly_price, instance.period_start, paid);
        if cost > remaining then
            bound := 2 * a_month * (100 * (billing_price_clock(instance.monthly_price, instance.period_start) + remaining) + 1)
                - a_month - 200 * instance.monthly_price * billing_epoch_microseconds(instance.period_start);
            step := 200 * instance.monthly_price * 3600000000;
            paid := greatest(div(bound, step) - (mod(bound, step) = 0)::int, 0);
            cost := billing_charge(instance.monthly_price, instance.period_start, paid);
        end if;
        remaining := remaining - cost;
        affordable := affordable || paid;
    end loop;
    return affordable;
end
$$;

CREATE FUNCTION billing_charge(monthly_price numeric, period_start timestamp with time zone, hours bigint) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select (div(200 * monthly_price * (billing_epoch_microseconds(period_start) + hours * 3600000000) + 2628000000000,
                5256000000000)
          - div(200 * monthly_price * billing_epoch_microseconds(period_start) + 2628000000000, 5256000000000)) * 0.01
$$;

CREATE FUNCTION billing_epoch_microseconds(moment timestamp with time zone) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select round(extract(epoch from moment - timestamptz '1970-01-01 00:00:00+00') * 1000000)::numeric $$;

CREATE FUNCTION billing_is_due(last_billed_at timestamp with time zone, created_at timestamp with time zone, as_of timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select last_billed_at <= as_of - interval '1 hour'
        or (last_billed_at is null and (created_at is null or created_at <= as_of - interval '1 hour'))
$$;

CREATE FUNCTION billing_is_moment(moment timestamp with time zone) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select coalesce(moment >= timestamptz '1970-01-01 00:00:00+00' and moment < 'infinity', false) $$;

CREATE FUNCTION billing_plan_prices() RETURNS TABLE(key text, monthly_price numeric, source text)
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$
    select distinct on (candidate.key) candidate.key, candidate.base_price + coalesce(candidate.markup_price, 0), candidate.source
    from (
        select p.id::text as key, 'plan' as source, 1 as preference, p.base_price, p.markup_price, p.active, p.created_at, p.id
        from vps_plans p
        union all
        select p.provider_plan_id, 'provider_plan', 2, p.base_price, p.markup_price, p.active, p.created_at, p.id
        from vps_plans p
    ) candidate
    order by candidate.key, candidate.preference, candidate.active desc nulls last, candidate.created_at, candidate.id
$$;

CREATE FUNCTION billing_price_clock(monthly_price numeric, moment timestamp with time zone) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select div(200 * monthly_price * billing_epoch_microseconds(moment) + 2628000000000, 5256000000000) * 0.01 $$;

CREATE FUNCTION billing_time_ordered_uuid(moment timestamp with time zone) RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$
    select encode(
        set_bit(set_bit(
            overlay(
                uuid_send(gen_random_uuid())
                placing substring(int8send(floor(extract(epoch from moment) * 1000)::bigint) from 3)
                from 1 for 6
            ), 52, 1), 53, 1),
        'hex')::uuid
$$;

CREATE FUNCTION billing_whole_hours(since timestamp with time zone, until timestamp with time zone) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select floor(extract(epoch from until - since) / 3600)::bigint $$;

CREATE TABLE billing_batches (
    id bigint NOT NULL,
    run_id bigint NOT NULL,
    term bigint NOT NULL,
    written_at timestamp with time zone NOT NULL,
    instances bigint NOT NULL,
    hours bigint NOT NULL,
    amount numeric NOT NULL,
    debts bigint NOT NULL,
    failures bigint NOT NULL
);

ALTER TABLE billing_batches ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_batches_id_seq
);

CREATE TABLE billing_daemon_status (
    id integer NOT NULL,
    daemon_instance_id character varying(255) NOT NULL,
    status character varying(50) NOT NULL,
    last_run_at timestamp with time zone,
    last_run_success boolean,
    instances_billed integer DEFAULT 0,
    total_amount numeric(20,2) DEFAULT 0,
    total_hours numeric(20,2) DEFAULT 0,
    error_message text,
    started_at timestamp with time zone,
    heartbeat_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb,
    created_at timestamp with time zone DEFAULT now(),
    updated_at timestamp with time zone DEFAULT now()
);

COMMENT ON TABLE billing_daemon_status IS 'One row a billing process that has led. Built-in billing pauses while the newest heartbeat_at is younger than 90 minutes';

COMMENT ON COLUMN billing_daemon_status.daemon_instance_id IS 'hostname-pid';

COMMENT ON COLUMN billing_daemon_status.status IS 'running, stopped or error';

COMMENT ON COLUMN billing_daemon_status.heartbeat_at IS 'written by the leader alone, every 60 seconds';

CREATE SEQUENCE billing_daemon_status_id_seq
    AS integer;

ALTER SEQUENCE billing_daemon_status_id_seq OWNED BY billing_daemon_status.id;

CREATE TABLE billing_guard (
    only_row boolean DEFAULT true NOT NULL,
    checked_until timestamp with time zone NOT NULL,
    CONSTRAINT billing_guard_only_row_check CHECK (only_row)
);

CREATE TABLE billing_holds (
    organization_id uuid NOT NULL,
    invariant text NOT NULL,
    detail text NOT NULL,
    held_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON COLUMN billing_holds.invariant IS 'as `containerstacks-billing audit` names them';

CREATE TABLE billing_leadership (
    only_row boolean DEFAULT true NOT NULL,
    term bigint DEFAULT 0 NOT NULL,
    holder text,
    lock_name text,
    elected_at timestamp with time zone,
    bill_after timestamp with time zone,
    CONSTRAINT billing_leadership_only_row_check CHECK (only_row)
);

COMMENT ON COLUMN billing_leadership.bill_after IS 'no cycle before: the application''s own billing may still have been at work when the controller took over';

CREATE TABLE billing_runs (
    id bigint NOT NULL,
    term bigint NOT NULL,
    holder text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    outcome text DEFAULT 'running'::text NOT NULL,
    instances bigint DEFAULT 0 NOT NULL,
    hours bigint DEFAULT 0 NOT NULL,
    amount numeric DEFAULT 0 NOT NULL,
    debts bigint DEFAULT 0 NOT NULL,
    failures bigint DEFAULT 0 NOT NULL,
    error text,
    CONSTRAINT billing_runs_outcome_check CHECK ((outcome = ANY (ARRAY['running'::text, 'completed'::text, 'failed'::text, 'stopped'::text, 'abandoned'::text])))
);

COMMENT ON COLUMN billing_runs.started_at IS 'by the database''s clock; everything due at this moment is the cycle''s work';

COMMENT ON COLUMN billing_runs.outcome IS 'stopped: a drain''s deadline came first; abandoned: its leader was lost. Either way the next cycle goes on where it ended';

COMMENT ON COLUMN billing_runs.debts IS 'instances whose wallet could not pay all their hours';

COMMENT ON COLUMN billing_runs.failures IS 'instances not charged for another reason';

ALTER TABLE billing_runs ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME billing_runs_id_seq
);

CREATE TABLE billing_schema_migrations (
    name text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE billing_terms (
    term bigint NOT NULL,
    holder text NOT NULL,
    minted_at timestamp with time zone NOT NULL
);

CREATE TABLE billing_wallet_baselines (
    wallet_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    baseline numeric NOT NULL,
    adopted_balance numeric NOT NULL,
    adopted_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY billing_daemon_status ALTER COLUMN id SET DEFAULT nextval('billing_daemon_status_id_seq'::regclass);

ALTER TABLE ONLY billing_batches
    ADD CONSTRAINT billing_batches_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_daemon_status
    ADD CONSTRAINT billing_daemon_status_daemon_instance_id_key UNIQUE (daemon_instance_id);

ALTER TABLE ONLY billing_daemon_status
    ADD CONSTRAINT billing_daemon_status_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_guard
    ADD CONSTRAINT billing_guard_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY billing_holds
    ADD CONSTRAINT billing_holds_pkey PRIMARY KEY (organization_id);

ALTER TABLE ONLY billing_leadership
    ADD CONSTRAINT billing_leadership_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY billing_runs
    ADD CONSTRAINT billing_runs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billing_schema_migrations
    ADD CONSTRAINT billing_schema_migrations_pkey PRIMARY KEY (name);

ALTER TABLE ONLY billing_terms
    ADD CONSTRAINT billing_terms_pkey PRIMARY KEY (term);

ALTER TABLE ONLY billing_wallet_baselines
    ADD CONSTRAINT billing_wallet_baselines_pkey PRIMARY KEY (wallet_id);

CREATE INDEX billing_batches_run ON billing_batches USING btree (run_id);

CREATE UNIQUE INDEX billing_one_charge_a_period ON vps_billing_cycles USING btree (vps_instance_id, billing_period_start) WHERE (((status)::text = 'billed'::text) AND ((metadata ->> 'controller'::text) = 'containerstacks-billing'::text));

CREATE UNIQUE INDEX billing_one_open_debt_an_instance ON vps_billing_cycles USING btree (vps_instance_id) WHERE (((status)::text = 'failed'::text) AND ((metadata ->> 'controller'::text) = 'containerstacks-billing'::text));

CREATE INDEX billing_runs_running ON billing_runs USING btree (id) WHERE (outcome = 'running'::text);

CREATE INDEX billing_runs_started_at ON billing_runs USING btree (started_at);

CREATE INDEX idx_billing_daemon_status_heartbeat ON billing_daemon_status USING btree (heartbeat_at);

CREATE INDEX idx_billing_daemon_status_instance ON billing_daemon_status USING btree (daemon_instance_id);
