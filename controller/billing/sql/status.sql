-- What `status`, the status page and the metrics show. The facts themselves are views of migration 026.

-- name: status
select * from billing_status

-- name: history
select * from billing_history limit %(limit)s
