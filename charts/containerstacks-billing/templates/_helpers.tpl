{{/*
Names are truncated to 44 characters, which leaves room for the longest suffix: a StatefulSet's name plus its revision hash
must fit into a label (63 characters).
*/}}
{{- define "containerstacks-billing.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 44 | trimSuffix "-" }}
{{- end }}

{{- define "containerstacks-billing.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $full | trunc 44 | trimSuffix "-" }}
{{- end }}

{{/*
The labels that selectors use. They must never change, because selectors are immutable. This template and the next two
take (list $ component).
*/}}
{{- define "containerstacks-billing.selectorLabels" -}}
app.kubernetes.io/name: {{ include "containerstacks-billing.name" (first .) }}
app.kubernetes.io/instance: {{ (first .).Release.Name }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{/* Without the chart's version: a new chart version with the same content must not restart the pods. */}}
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

{{/* Fields common to all containers of the controller image. */}}
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

{{/* The Secret that holds the database URL: the operator's, or the one that the chart creates. */}}
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
The variables that tell a container where to read the database URL. The path contains the names of the Secret and its key,
so a "no such file" in the log says what is missing.
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
The Secret is mounted as a directory, because the kubelet doesn't update subPath mounts after a rotation. It is optional:
without the Secret or its key the pod starts, logs what is missing, and continues once it appears. A required Secret would
leave the pod in ContainerCreating with no log.
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

{{/* The controller's environment. */}}
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
- name: BILLING_ACCEPT_COLUMNS
  value: {{ .Values.billing.acceptColumns | quote }}
- name: BILLING_LOCK_NAME
  value: {{ .Values.billing.lockName | quote }}
- name: BILLING_TAKEOVER_DELAY_SECONDS # 0 in a demo: no application bills there
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

{{/* The container that runs the migrations, for the init container and the Job. Its volume follows below. */}}
{{- define "containerstacks-billing.migrateContainer" -}}
{{- $secret := .Values.migrations.existingSecret -}}
- name: migrate
  {{- include "containerstacks-billing.container" . | nindent 2 }}
  {{- /* Waiting here is quicker than the kubelet's back-off, which may add five minutes after the database is back. */}}
  args: [migrate, --wait, "600"]
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

{{/* Scheduling fields common to all pods. */}}
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

{{/* Checks that a JSON schema can't express. Each message names the values and the remedy. */}}
{{- define "containerstacks-billing.validate" -}}
{{- with .Values }}
{{- if .demo.enabled }}
  {{- if or .database.existingSecret .database.url .database.directUrl .migrations.existingSecret }}
    {{- fail "\n\ndemo.enabled installs a database and fills it with sample data. Unset database.* and migrations.existingSecret, or set demo.enabled=false to bill the database that they name.\n" }}
  {{- end }}
  {{- if ne .migrations.mode "init" }}
    {{- fail (printf "\n\ndemo.enabled needs migrations.mode: init (it is %s), because an init container creates the sample schema before the migrations. Unset migrations.mode.\n" .migrations.mode) }}
  {{- end }}
{{- else if and .database.existingSecret .database.url }}
  {{- fail "\n\nBoth database.existingSecret and database.url are set. Keep one of them.\n" }}
{{- else if not (or .database.existingSecret .database.url) }}
  {{- fail "\n\nNo database is set. Set exactly one of\n  database.existingSecret   the name of a Secret with the key DATABASE_URL:\n                            kubectl create secret generic billing-database --from-literal=DATABASE_URL='postgresql://...'\n  database.url              the URL itself, for a trial (the chart creates the Secret)\nor demo.enabled=true for a trial with a sample database.\n" }}
{{- end }}
{{- if and .database.directUrl (not .database.url) }}
  {{- fail "\n\ndatabase.directUrl requires database.url. With database.existingSecret, put the direct URL into the same Secret and set database.existingSecretDirectKey to its key.\n" }}
{{- end }}
{{- if and .database.existingSecretDirectKey (not .database.existingSecret) }}
  {{- fail "\n\ndatabase.existingSecretDirectKey names a key of database.existingSecret, which isn't set. With database.url, set database.directUrl.\n" }}
{{- end }}
{{- with .election }}
{{- if or (lt (float64 .leaderDeadlineSeconds) (mulf 2 .pingIntervalSeconds)) (lt (float64 .sessionTimeoutSeconds) (addf 1 .leaderDeadlineSeconds)) }}
  {{- fail (printf "\n\nelection: leaderDeadlineSeconds (%v) must be at least twice pingIntervalSeconds (%v), or one late ping deposes the leader. sessionTimeoutSeconds (%v) must be at least a second more than leaderDeadlineSeconds, or the server could release the lock while the leader still bills.\n" .leaderDeadlineSeconds .pingIntervalSeconds .sessionTimeoutSeconds) }}
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
  {{- if has .name (concat $own (list "DATABASE_URL" "DATABASE_DIRECT_URL" "DATABASE_DIRECT_URL_FILE")) }}
    {{- fail (printf "\n\nextraEnv sets %s, which the chart already sets. Use the chart's value for it (see README.md).\n" .name) }}
  {{- end }}
{{- end }}
{{- end }}
