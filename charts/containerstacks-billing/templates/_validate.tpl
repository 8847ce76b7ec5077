{{/* Checks that a JSON schema can't express. Each message names the values and the remedy. */}}
{{- define "containerstacks-billing.validate" -}}
{{- with .Values }}
{{- if .demo.enabled }}
  {{- if or .database.existingSecret .database.url .database.directUrl .database.existingFile .migrations.existingSecret .migrations.existingFile }}
    {{- fail "\n\ndemo.enabled installs a database and fills it with sample data. Unset database.* and migrations.existingSecret, or set demo.enabled=false to bill the database that they name.\n" }}
  {{- end }}
  {{- if ne .migrations.mode "init" }}
    {{- fail (printf "\n\ndemo.enabled needs migrations.mode: init (it is %s), because an init container creates the sample schema before the migrations. Unset migrations.mode.\n" .migrations.mode) }}
  {{- end }}
{{- else }}
{{- with .database }}
  {{- if and .existingSecret .url (not .passwordKey) }}
    {{- fail "\n\nBoth database.existingSecret and database.url are set. Keep one of them. If the URL has no credentials and the Secret holds them, set database.passwordKey (and database.usernameKey) to the Secret's keys.\n" }}
  {{- else if and .existingFile (or .existingSecret .url .directUrl .existingSecretDirectKey .usernameKey .passwordKey) }}
    {{- fail "\n\ndatabase.existingFile is set together with database.existingSecret, database.url or another of their values. Keep one of them.\n" }}
  {{- else if not (or .existingSecret .url .existingFile) }}
    {{- fail "\n\nNo database is set. Set exactly one of\n  database.existingSecret   the name of a Secret with the key DATABASE_URL:\n                            kubectl create secret generic billing-database --from-literal=DATABASE_URL='postgresql://...'\n  database.existingFile     a file with the URL, which extraVolumes mounts\n  database.url              the URL itself, for a trial (the chart creates the Secret)\nor demo.enabled=true for a trial with a sample database.\n" }}
  {{- end }}
{{- end }}
{{- end }}
{{- with .database }}
{{- if and .usernameKey (not .passwordKey) }}
  {{- fail "\n\ndatabase.usernameKey is set without database.passwordKey. Set both, or put the whole URL into the Secret.\n" }}
{{- end }}
{{- if .passwordKey }}
  {{- if not (and .existingSecret .url) }}
    {{- fail "\n\ndatabase.passwordKey names a key of database.existingSecret and completes database.url. Set both: the Secret's name, and the URL without a password.\n" }}
  {{- end }}
  {{- range list .url .directUrl }}
    {{- if . | default "" | regexMatch "^[a-z]+://[^/?@]*:[^/?@]*@|[?&]password=" }}
      {{- fail "\n\ndatabase.url or database.directUrl holds a password, and database.passwordKey is set. Remove the password from the URL.\n" }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if .usernameKey }}
  {{- range list .url .directUrl }}
    {{- if . | default "" | regexMatch "^[a-z]+://[^/?@]*@|[?&]user=" }}
      {{- fail "\n\ndatabase.url or database.directUrl holds a user name, and database.usernameKey is set. Keep one of them.\n" }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if and .directUrl (not .url) }}
  {{- fail "\n\ndatabase.directUrl requires database.url. With database.existingSecret, put the direct URL into the same Secret and set database.existingSecretDirectKey to its key.\n" }}
{{- end }}
{{- if and .existingSecretDirectKey (or .passwordKey (not .existingSecret)) }}
  {{- fail "\n\ndatabase.existingSecretDirectKey names a key of database.existingSecret that holds a whole URL. The Secret isn't set, or holds credentials. With database.url, set database.directUrl.\n" }}
{{- end }}
{{- if and .existingDirectFile (not .existingFile) }}
  {{- fail "\n\ndatabase.existingDirectFile requires database.existingFile.\n" }}
{{- end }}
{{- if and (.ca).existingSecret (.ca).existingConfigMap }}
  {{- fail "\n\nBoth database.ca.existingSecret and database.ca.existingConfigMap are set. Keep one of them.\n" }}
{{- end }}
{{- end }}
{{- with .migrations }}
{{- if and .existingFile (or .existingSecret .passwordKey) }}
  {{- fail "\n\nBoth migrations.existingFile and migrations.existingSecret are set. Keep one of them.\n" }}
{{- end }}
{{- if and .usernameKey (not .passwordKey) }}
  {{- fail "\n\nmigrations.usernameKey is set without migrations.passwordKey. Set both, or put the whole URL into the Secret.\n" }}
{{- end }}
{{- if and .passwordKey (not (and .existingSecret $.Values.database.passwordKey)) }}
  {{- fail "\n\nmigrations.passwordKey names a key of migrations.existingSecret and completes database.url, which must have no credentials. Set migrations.existingSecret and database.passwordKey too.\n" }}
{{- end }}
{{- end }}
{{- range list "containers" "initContainers" "volumes" "securityContext" "serviceAccountName" "terminationGracePeriodSeconds" }}
{{- if hasKey ($.Values.podSpec | default dict) . }}
  {{- fail (printf "\n\npodSpec.%s would replace what the chart sets. Use the chart's own value: extraContainers, extraInitContainers, extraVolumes, podSecurityContext, serviceAccount.name or drain.timeoutSeconds.\n" .) }}
{{- end }}
{{- end }}
{{- with .election }}
{{- if or (lt (float64 .leaderDeadlineSeconds) (mulf 2 .pingIntervalSeconds)) (le (float64 .leaderDeadlineSeconds) (addf 0.9 .pingIntervalSeconds)) (lt (float64 .sessionTimeoutSeconds) (addf 1 .leaderDeadlineSeconds)) }}
  {{- fail (printf "\n\nelection: leaderDeadlineSeconds (%v) must be at least twice pingIntervalSeconds (%v) and more than 0.9 s longer, or one late ping deposes the leader. sessionTimeoutSeconds (%v) must be at least a second more than leaderDeadlineSeconds, or the server could release the lock while the leader still bills.\n" .leaderDeadlineSeconds .pingIntervalSeconds .sessionTimeoutSeconds) }}
{{- end }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled .metrics.podMonitor.enabled }}
  {{- fail "\n\nmetrics.serviceMonitor and metrics.podMonitor are both enabled, so Prometheus would scrape every replica twice and double all sums. Keep one of them.\n" }}
{{- end }}
{{- if and .kubernetes.enabled (not .serviceAccount.create) (not .serviceAccount.name) }}
  {{- fail "\n\nserviceAccount.create is false and serviceAccount.name is empty. Name the account to use, or set kubernetes.enabled=false, which needs none.\n" }}
{{- end }}
{{- end }}
{{- $own := list }}
{{- range include "containerstacks-billing.controllerEnv" . | fromYamlArray }}{{ $own = append $own .name }}{{ end }}
{{- range .Values.extraEnv }}
  {{- if has .name (concat $own (list "DATABASE_URL" "DATABASE_URL_FILE" "DATABASE_DIRECT_URL" "DATABASE_DIRECT_URL_FILE")) }}
    {{- fail (printf "\n\nextraEnv sets %s, which the chart already sets. Use the chart's value for it (see README.md).\n" .name) }}
  {{- end }}
{{- end }}
{{- end }}
