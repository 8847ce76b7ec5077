{{/*
Names are truncated to 44 characters, which leaves room for the longest suffix: a StatefulSet's name plus its revision hash
must fit into a label (63 characters). A Service's name begins with a letter and holds no dot; a release's name may do
otherwise.
*/}}
{{- define "containerstacks-billing.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 44 | trimSuffix "-" }}
{{- end }}

{{- define "containerstacks-billing.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) | replace "." "-" }}
{{- $full = regexMatch "^[0-9]" $full | ternary (printf "release-%s" $full) $full }}
{{- .Values.fullnameOverride | default $full | trunc 44 | trimAll "-" }}
{{- end }}

{{- define "containerstacks-billing.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{/* The number of replicas; empty if an autoscaler or `kubectl scale` sets it. */}}
{{- define "containerstacks-billing.replicas" -}}
{{- if not (or (kindIs "invalid" .Values.replicas) (eq (toString .Values.replicas) "auto")) }}{{ int64 .Values.replicas }}{{ end }}
{{- end }}

{{/* An object's metadata. Takes (dict "root" $ "component" ... "name" ... "labels" ... "annotations" ...). */}}
{{- define "containerstacks-billing.metadata" -}}
name: {{ .name | quote }}
namespace: {{ include "containerstacks-billing.namespace" .root | quote }}
labels:
  {{- toYaml (merge (dict) (.labels | default dict) (include "containerstacks-billing.labels" (list .root .component) | fromYaml)) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
A pod's metadata. Takes (dict "root" $ "component" ... "labels" ... "annotations" ...). The chart's labels win, because
selectors use them. They leave out the chart's version: a new version with the same content must not restart the pods.
*/}}
{{- define "containerstacks-billing.podMetadata" -}}
labels:
  {{- $own := include "containerstacks-billing.podLabels" (list .root .component) | fromYaml }}
  {{- toYaml (merge $own (.labels | default dict) (.root.Values.commonLabels | default dict)) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The metadata of a Job's pod, such as the migration's. */}}
{{- define "containerstacks-billing.jobPodMetadata" -}}
{{- include "containerstacks-billing.podMetadata" (dict "root" (first .) "component" (last .) "labels" (first .).Values.jobPodLabels "annotations" (first .).Values.jobPodAnnotations) }}
{{- end }}

{{/* Merges podSpec over a pod's spec. Takes (list $ spec). */}}
{{- define "containerstacks-billing.podSpec" -}}
{{- with (first .).Values.podSpec }}
{{- toYaml (mergeOverwrite (last $ | fromYaml) (deepCopy .)) }}
{{- else }}
{{- last . }}
{{- end }}
{{- end }}

{{/*
The labels that selectors use. They must never change, because selectors are immutable. This template and the next two
take (list $ component).
*/}}
{{- define "containerstacks-billing.selectorLabels" -}}
app.kubernetes.io/name: {{ include "containerstacks-billing.name" (first .) | quote }}
app.kubernetes.io/instance: {{ (first .).Release.Name | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end }}

{{- define "containerstacks-billing.podLabels" -}}
{{ include "containerstacks-billing.selectorLabels" . }}
app.kubernetes.io/version: {{ include "containerstacks-billing.labelValue" ((first .).Values.image.tag | default (first .).Chart.AppVersion) | quote }}
app.kubernetes.io/part-of: containerstacks
{{- end }}

{{/* A tag as the value of a label, which has at most 63 characters and begins and ends with a letter or a digit. */}}
{{- define "containerstacks-billing.labelValue" -}}
{{- regexReplaceAll "[^A-Za-z0-9_.-]" . "_" | trunc 63 | trimAll "-_." }}
{{- end }}

{{- define "containerstacks-billing.labels" -}}
{{- $own := include "containerstacks-billing.podLabels" . | fromYaml }}
{{- $helm := dict "app.kubernetes.io/managed-by" (first .).Release.Service
      "helm.sh/chart" (include "containerstacks-billing.labelValue" (printf "%s-%s" (first .).Chart.Name (first .).Chart.Version)) }}
{{- toYaml (merge $own $helm ((first .).Values.commonLabels | default dict)) }}
{{- end }}

{{- define "containerstacks-billing.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "containerstacks-billing.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "containerstacks-billing.image" -}}
{{- with (.Values.global).imageRegistry | default .Values.image.registry }}{{ . }}/{{ end }}
{{- with .Values.image }}
{{- .repository }}
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

{{/*
The pods' security context. What differs between profiles is not in values.yaml, because Helm drops a null in a parent chart's
values. OpenShift assigns uid, gid and fsGroup itself, and refuses others.
*/}}
{{- define "containerstacks-billing.podSecurityContext" -}}
{{- $ids := dict "runAsUser" 65532 "runAsGroup" 65532 "fsGroup" 65532 }}
{{- $profile := dict "runAsNonRoot" true "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- $context := mergeOverwrite $profile $ids (deepCopy (.Values.podSecurityContext | default dict)) }}
{{- if eq (.Values.securityProfile | default "restricted") "openshift" }}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
{{- toYaml $context }}
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
- name: BILLING_PACE
  value: {{ .Values.billing.pace | toString | quote }}
- name: BILLING_MAX_BACKLOG_HOURS
  value: {{ .Values.billing.maxBacklogHours | toString | quote }}
- name: BILLING_DEFAULT_HOURLY_RATE
  value: {{ .Values.billing.defaultHourlyRate | toString | quote }}
- name: BILLING_CURRENCY
  value: {{ .Values.billing.currency | quote }}
- name: BILLING_ACCEPT_COLUMNS
  value: {{ .Values.billing.acceptColumns | quote }}
- name: BILLING_OTHER_BILLERS
  value: {{ .Values.billing.otherBillers | quote }}
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
  value: {{ printf "%s:%d" (.Values.http.host | default "") (int64 .Values.http.port) | quote }}
- name: BILLING_PAGE_ADDRESS # loopback: only kubectl port-forward reaches it
  value: {{ .Values.http.pageAddress | default "127.0.0.1:8081" | quote }}
- name: BILLING_CONTROL_SOCKET
  value: /run/containerstacks-billing/control.sock
- name: BILLING_KUBERNETES
  value: {{ ternary "auto" "off" .Values.kubernetes.enabled | quote }}
- name: BILLING_DEPLOYMENT_NAME
  value: {{ include "containerstacks-billing.fullname" . | quote }}
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

{{/* Scheduling fields common to all pods. */}}
{{- define "containerstacks-billing.scheduling" -}}
{{- $pullSecrets := list }}
{{- range concat (.Values.imagePullSecrets | default list) ((.Values.global).imagePullSecrets | default list) }}
{{- $pullSecrets = append $pullSecrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- with $pullSecrets | uniq }}
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
