-- The pod in which each term's leader runs; null outside Kubernetes. A leader whose node is unreachable can't remove the label
-- `role=leader` from its own pod, so its successor does.
alter table billing_terms add column if not exists pod jsonb;
comment on column billing_terms.pod is 'namespace, name and uid of the pod that minted this term; null outside Kubernetes';

comment on column billing_daemon_status.daemon_instance_id is 'pod:suffix in Kubernetes, else hostname-pid';

insert into billing_schema_migrations (name) values ('038_billing_leader_pods') on conflict do nothing;
