{{/*
Names are cut so that the longest suffix still fits: a StatefulSet's name with its revision hash must be a label (63).
*/}}
{{- define "containerstacks-billing.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 44 | trimSuffix "-" }}
{{- end }}

{{- define "containerstacks-billing.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $full | trunc 44 | trimSuffix "-" }}
{{- end }}

{{/* What a selector may rest on: it can't change in an upgrade. Takes (list $ component), as the next ones do. */}}
{{- define "containerstacks-billing.selectorLabels" -}}
app.kubernetes.io/name: {{ include "containerstacks-billing.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Not the chart's version: a new chart with the same content must not restart the pods. */}}
{{- define "containerstacks-billing.podLabels" -}}
{{ include "containerstacks-billing.selectorLabels" . }}
app.kubernetes.io/version: {{ (first .).Values.image.tag | default (first .).Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/part-of: containerstacks
{{- end }}

{{- define "containerstacks-billing.labels" -}}
{{- $own := include "containerstacks-billing.podLabels" . | fromYaml }}
{{- $helm := dict "app.kubernetes.io/managed-by" (first .).Release.Service
      "helm.sh/chart" (printf "%s-%s" (first .).Chart.Name (replace "+" "_" (first .).Chart.Version)) }}
{{- toYaml (merge $own $helm (first .).Values.commonLabels) }}
{{- end }}

{{- define "containerstacks-billing.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "containerstacks-billing.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "containerstacks-billing.image" -}}
{{- with .Values.image }}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What every container of this image has. */}}
{{- define "containerstacks-billing.container" -}}
image: {{ include "containerstacks-billing.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* The Secret that holds the database's URL: the operator's, or the chart's own. */}}
{{- define "containerstacks-billing.databaseSecret" -}}
{{- .Values.database.existingSecret | default (printf "%s-database" (include "containerstacks-billing.fullname" .)) }}
{{- end }}

{{- define "containerstacks-billing.databaseKey" -}}
{{- if .Values.database.existingSecret }}{{ .Values.database.existingSecretKey }}{{ else }}DATABASE_URL{{ end }}
{{- end }}

{{- define "containerstacks-billing.databaseDirectKey" -}}
{{- if .Values.database.existingSecret }}{{ .Values.database.existingSecretDirectKey }}
{{- else if .Values.database.directUrl }}DATABASE_DIRECT_URL
{{- end }}
{{- end }}

{{/*
Where a container finds the database. The path holds the names of the Secret and of its key, so that "no such file" in the
log says what is missing.
*/}}
{{- define "containerstacks-billing.databaseEnv" -}}
{{- $folder := printf "/etc/containerstacks-billing/secrets/%s" (include "containerstacks-billing.databaseSecret" .) -}}
- name: DATABASE_URL_FILE
  value: {{ $folder }}/{{ include "containerstacks-billing.databaseKey" . }}
{{- with include "containerstacks-billing.databaseDirectKey" . }}
- name: DATABASE_DIRECT_URL_FILE
  value: {{ $folder }}/{{ . }}
{{- end }}
{{- end }}

{{- define "containerstacks-billing.databaseMount" -}}
- name: database
  mountPath: /etc/containerstacks-billing/secrets/{{ include "containerstacks-billing.databaseSecret" . }}
  readOnly: true
{{- end }}

{{/*
Whole folders, never subPath, so that a rotated Secret reaches the pod. Optional: a pod with a Secret or a key missing
starts, says so in its log, and goes on when it appears; otherwise it would hang without a word.
*/}}
{{- define "containerstacks-billing.databaseVolume" -}}
- name: database
  secret:
    secretName: {{ include "containerstacks-billing.databaseSecret" . }}
    optional: true
    defaultMode: 0440
    items:
      - key: {{ include "containerstacks-billing.databaseKey" . }}
        path: {{ include "containerstacks-billing.databaseKey" . }}
      {{- with include "containerstacks-billing.databaseDirectKey" . }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end }}

{{- define "containerstacks-billing.tmpVolume" -}}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end }}

{{- define "containerstacks-billing.logEnv" -}}
- name: LOG_LEVEL
  value: {{ .Values.log.level }}
- name: LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end }}

{{/* Everything the controller is told. */}}
{{- define "containerstacks-billing.controllerEnv" -}}
{{ include "containerstacks-billing.databaseEnv" . }}
{{ include "containerstacks-billing.logEnv" . }}
- name: BILLING_INTERVAL_MINUTES
  value: {{ .Values.billing.intervalMinutes | toString | quote }}
- name: BILLING_WORKERS
  value: {{ .Values.billing.workers | int64 | quote }}
- name: BILLING_BATCH_SIZE
  value: {{ .Values.billing.batchSize | int64 | quote }}
- name: BILLING_DEFAULT_HOURLY_RATE
  value: {{ .Values.billing.defaultHourlyRate | toString | quote }}
- name: BILLING_CURRENCY
  value: {{ .Values.billing.currency | quote }}
- name: BILLING_LOCK_NAME
  value: {{ .Values.billing.lockName | quote }}
- name: BILLING_TAKEOVER_DELAY_SECONDS # none in a demo: there is no application whose billing could be at work
  value: {{ ternary 0 .Values.billing.takeoverDelaySeconds .Values.demo.enabled | toString | quote }}
- name: BILLING_STATUS_RETENTION_DAYS
  value: {{ .Values.billing.statusRetentionDays | int64 | quote }}
- name: BILLING_PING_INTERVAL_SECONDS
  value: {{ .Values.election.pingIntervalSeconds | toString | quote }}
- name: BILLING_LEADER_DEADLINE_SECONDS
  value: {{ .Values.election.leaderDeadlineSeconds | toString | quote }}
- name: BILLING_SESSION_TIMEOUT_SECONDS
  value: {{ .Values.election.sessionTimeoutSeconds | toString | quote }}
- name: BILLING_EVICTION
  value: {{ ternary "on" "off" .Values.election.eviction | quote }}
- name: BILLING_HEARTBEAT_SECONDS
  value: {{ .Values.election.heartbeatSeconds | toString | quote }}
- name: BILLING_DRAIN_TIMEOUT_SECONDS
  value: {{ .Values.drain.timeoutSeconds | int64 | quote }}
- name: BILLING_HTTP_ADDRESS
  value: {{ printf "%s:%d" .Values.http.host (int64 .Values.http.port) | quote }}
- name: BILLING_CONTROL_SOCKET
  value: /run/containerstacks-billing/control.sock
- name: BILLING_KUBERNETES
  value: {{ ternary "auto" "off" .Values.kubernetes.enabled | quote }}
- name: BILLING_DEPLOYMENT_NAME
  value: {{ include "containerstacks-billing.fullname" . }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{/* The container that brings the schema up to date, with its volume: for the initContainer and for the Job. */}}
{{- define "containerstacks-billing.migrateContainer" -}}
{{- $secret := .Values.migrations.existingSecret -}}
- name: migrate
  {{- include "containerstacks-billing.container" . | nindent 2 }}
  args: [migrate]
  env:
    {{- if $secret }}
    - name: DATABASE_URL_FILE
      value: /etc/containerstacks-billing/secrets/{{ $secret }}/{{ .Values.migrations.existingSecretKey }}
    {{- else }}
    {{- include "containerstacks-billing.databaseEnv" . | nindent 4 }}
    {{- end }}
    {{- include "containerstacks-billing.logEnv" . | nindent 4 }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    {{- if $secret }}
    - name: migrations-database
      mountPath: /etc/containerstacks-billing/secrets/{{ $secret }}
      readOnly: true
    {{- else }}
    {{- include "containerstacks-billing.databaseMount" . | nindent 4 }}
    {{- end }}
    - name: tmp
      mountPath: /tmp
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "containerstacks-billing.migrateVolume" -}}
{{- with .Values.migrations }}
- name: migrations-database
  secret:
    secretName: {{ .existingSecret }}
    optional: true
    defaultMode: 0440
    items:
      - key: {{ .existingSecretKey }}
        path: {{ .existingSecretKey }}
{{- end }}
{{- end }}

{{/* Where pods may run: the same for all of them. */}}
{{- define "containerstacks-billing.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a schema can't say. Each refusal names the values, and what to do. */}}
{{- define "containerstacks-billing.validate" -}}
{{- with .Values }}
{{- if .demo.enabled }}
  {{- if or .database.existingSecret .database.url .database.directUrl .migrations.existingSecret }}
    {{- fail "\n\ndemo.enabled brings a database of its own and fills it with sample data. Unset database.* and migrations.existingSecret, or turn demo.enabled off to bill the database that they name.\n" }}
  {{- end }}
  {{- if ne .migrations.mode "init" }}
    {{- fail (printf "\n\ndemo.enabled needs migrations.mode: init (it is %s): the sample schema is made by an initContainer too, and must come first.\n" .migrations.mode) }}
  {{- end }}
{{- else if and .database.existingSecret .database.url }}
  {{- fail "\n\nBoth database.existingSecret and database.url are set: which database is to be billed? Keep one of them.\n" }}
{{- else if not (or .database.existingSecret .database.url) }}
  {{- fail "\n\nWhich database? Set exactly one of\n  database.existingSecret   the name of a Secret with the key DATABASE_URL:\n                            kubectl create secret generic billing-database --from-literal=DATABASE_URL='postgresql://...'\n  database.url              the URL itself, for a trial (the chart makes the Secret)\nor demo.enabled=true for a trial with a database of the chart's own.\n" }}
{{- end }}
{{- if and .database.directUrl (not .database.url) }}
  {{- fail "\n\ndatabase.directUrl goes with database.url. With database.existingSecret, put the direct URL into the same Secret and name its key in database.existingSecretDirectKey.\n" }}
{{- end }}
{{- if and .database.existingSecretDirectKey (not .database.existingSecret) }}
  {{- fail "\n\ndatabase.existingSecretDirectKey is a key of database.existingSecret, which is not set. With database.url, set database.directUrl.\n" }}
{{- end }}
{{- with .election }}
{{- if or (lt (float64 .leaderDeadlineSeconds) (mulf 2 .pingIntervalSeconds)) (lt (float64 .sessionTimeoutSeconds) (addf 1 .leaderDeadlineSeconds)) }}
  {{- fail (printf "\n\nelection: leaderDeadlineSeconds (%v) must be at least twice pingIntervalSeconds (%v), or one late ping deposes the leader, and sessionTimeoutSeconds (%v) at least a second more than leaderDeadlineSeconds, or the server could free the lock while the leader still believes in it.\n" .leaderDeadlineSeconds .pingIntervalSeconds .sessionTimeoutSeconds) }}
{{- end }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled .metrics.podMonitor.enabled }}
  {{- fail "\n\nmetrics.serviceMonitor and metrics.podMonitor are both enabled: every replica would be scraped twice and counted double. Keep one of them.\n" }}
{{- end }}
{{- if and .kubernetes.enabled (not .serviceAccount.create) (not .serviceAccount.name) }}
  {{- fail "\n\nserviceAccount.create is false and serviceAccount.name is empty: name the account to use, or set kubernetes.enabled=false, which needs none.\n" }}
{{- end }}
{{- end }}
{{- $own := list }}
{{- range include "containerstacks-billing.controllerEnv" . | fromYamlArray }}{{ $own = append $own .name }}{{ end }}
{{- range .Values.extraEnv }}
  {{- if has .name (concat $own (list "DATABASE_URL" "DATABASE_DIRECT_URL" "DATABASE_DIRECT_URL_FILE")) }}
    {{- fail (printf "\n\nextraEnv sets %s, which the chart sets itself: use the value for it (see README.md).\n" .name) }}
  {{- end }}
{{- end }}
{{- end }}
