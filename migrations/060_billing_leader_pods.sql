-- In which pod each term's leader runs. A leader whose node is away can't take the label `role=leader` off its own pod, so its
-- successor does. Null outside Kubernetes.
alter table billing_terms add column if not exists pod jsonb;
comment on column billing_terms.pod is 'namespace, name and uid of the pod that minted this term; null outside Kubernetes';

comment on column billing_daemon_status.daemon_instance_id is 'pod:suffix in Kubernetes, else hostname-pid';

insert into billing_schema_migrations (name) values ('060_billing_leader_pods') on conflict do nothing;
