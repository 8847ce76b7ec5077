-- Sessions of every kind.

-- name: backend_pid
select pg_backend_pid() as pid

-- name: state_settings
-- Skips settings that this server's version or operating system does not have. A null means the default of the role, the
-- database or the server; it undoes what another user of the backend has set. The search path ends with pg_temp, so that
-- another user's temporary table can't hide one of our tables.
select set_config(key, value, %(local)s)
from json_each_text(%(settings)s)
where current_setting(key, true) is not null
    and (not (starts_with(key, 'tcp_') or key = 'client_connection_check_interval') or version() ~ 'linux')
union all
select set_config('search_path',
    concat_ws(', ', nullif(set_config('search_path', null, %(local)s), ''), 'pg_temp'), %(local)s)

-- name: check_constraints_now
set constraints all immediate
