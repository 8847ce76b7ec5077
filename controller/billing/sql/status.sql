-- What `status`, the status page and the metrics show, from the views of migration 026.

-- name: status
select * from billing_status

-- name: history
select * from billing_history limit %(limit)s
