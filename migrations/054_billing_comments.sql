-- Column comments in plainer words. Nothing else changes.

comment on column billing_runs.cause is
    'why a cycle failed: controller (it is retried at once) or organizations (none of them could be charged). Why a cycle was stopped: '
    'drain (the replica was stopped before the cycle ended) or halt (billing was halted)';
comment on column billing_runs.planned is
    'instances that were due when the cycle started, including those that the plan missed; null if the cycle ended before it had a plan';
comment on column billing_runs.vanished is
    'planned instances that were no longer due when the cycle reached them, because they were deleted or another program had charged '
    'them. Negative if more instances became due after the plan was made; null if the cycle did not finish its plan';
comment on column billing_runs.charged_in_part is
    'instances that paid only some of their hours; counted in both instances and debts';

comment on column billing_accepted_backlogs.instances is
    'number of instances accepted together; null in a row that names its instance';
comment on column billing_accepted_backlogs.owed is 'the price of the accepted hours according to their open rows';

comment on column billing_commands.until is
    'pause, suspend: when it ends, null for indefinitely. waive: the end of the waived hours';
comment on column billing_commands.finished_at is
    'when the leader had carried the command out. A pause is finished once no batch is in progress';
comment on column billing_commands.refusal is 'why the leader refused the command';

comment on column billing_corrections.difference is 'the difference before the correction';

comment on column billing_daemon_sightings.changed is
    'true if the heartbeat has changed since the first reading, so the daemon is alive';

comment on column billing_leadership.bill_after is
    'no cycle starts before this time, because the application''s own billing may have been running when this controller took over';
comment on column billing_leadership.takeover_delay_seconds is
    'the takeover delay while a takeover waits, counted from the newest period of another program; otherwise null';
comment on column billing_leadership.resigned_term is
    'the newest term whose leader resigned. If a leader is lost, this is older than its term';

comment on table billing_lost_periods is 'billed periods that were deleted with an organization although their instances still exist';

comment on column billing_suspensions.reason is
    'guard: the violated invariant, by its name in `containerstacks-billing audit`. operator: the operator''s reason';
comment on column billing_suspensions.kind is
    'guard: ends when an audit is clean. operator: ends with `unsuspend`, or at the time in until';
comment on column billing_suspensions.until is 'when an operator''s suspension ends; null if only `unsuspend` ends it';

comment on column billing_wallet_baselines.left_balance is 'the balance after the controller''s last charge; null before the first charge';
comment on column billing_wallet_baselines.changed_at is
    'when a charge found a balance other than left_balance; null once the wallet has been compared with its transactions';
comment on column billing_wallet_baselines.checked_at is 'when the wallet last equalled its baseline plus its transactions';

insert into billing_schema_migrations (name) values ('054_billing_comments') on conflict do nothing;
