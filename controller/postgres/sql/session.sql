-- Sessions of every kind.

-- name: backend_pid
select pg_backend_pid() as pid

-- name: set_session_settings
-- Skips settings that this server version does not have.
select set_config(name, setting, false)
from unnest(%(names)s::text[], %(settings)s::text[]) as s (name, setting)
where current_setting(name, true) is not null

-- name: set_transaction_settings
select set_config(name, setting, true)
from unnest(%(names)s::text[], %(settings)s::text[]) as s (name, setting)

-- name: check_constraints_now
set constraints all immediate
