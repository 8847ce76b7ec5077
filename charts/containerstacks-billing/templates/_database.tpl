{{- /* How the containers find the database: the Secret, the file or the URL, the CA, and the ports. */}}

{{/* The name of the Secret that the chart creates from database.url, or of the one that exists. */}}
{{- define "containerstacks-billing.databaseSecret" -}}
{{- .Values.database.existingSecret | default (printf "%s-database" (include "containerstacks-billing.fullname" .)) }}
{{- end }}

{{/* Returns "true" if the chart creates the Secret. */}}
{{- define "containerstacks-billing.createsSecret" -}}
{{- if or .Values.demo.enabled (and .Values.database.url (not .Values.database.existingSecret)) }}true{{ end }}
{{- end }}

{{/*
Where a container finds its database: a Secret ("" for none), variables that name one of its keys, and variables with a literal
value.
*/}}
{{- define "containerstacks-billing.databaseSource" -}}
{{- $database := .Values.database }}
{{- if $database.existingFile }}
secret: ""
literals:
  DATABASE_URL_FILE: {{ $database.existingFile | quote }}
  {{- with $database.existingDirectFile }}
  DATABASE_DIRECT_URL_FILE: {{ . | quote }}
  {{- end }}
{{- else if $database.passwordKey }}
secret: {{ $database.existingSecret | quote }}
literals:
  DATABASE_URL: {{ $database.url | quote }}
  {{- with $database.directUrl }}
  DATABASE_DIRECT_URL: {{ . | quote }}
  {{- end }}
keys:
  DATABASE_PASSWORD_FILE: {{ $database.passwordKey | quote }}
  {{- with $database.usernameKey }}
  DATABASE_USERNAME_FILE: {{ . | quote }}
  {{- end }}
{{- else }}
secret: {{ include "containerstacks-billing.databaseSecret" . | quote }}
keys:
  DATABASE_URL_FILE: {{ if $database.existingSecret }}{{ $database.existingSecretKey | quote }}{{ else }}DATABASE_URL{{ end }}
  {{- if and $database.existingSecret $database.existingSecretDirectKey }}
  DATABASE_DIRECT_URL_FILE: {{ $database.existingSecretDirectKey | quote }}
  {{- else if and $database.directUrl (not $database.existingSecret) }}
  DATABASE_DIRECT_URL_FILE: DATABASE_DIRECT_URL
  {{- end }}
{{- end }}
{{- end }}

{{/* The database of the migrations, whose role may differ; empty if they use the controller's. */}}
{{- define "containerstacks-billing.migrationsSource" -}}
{{- $migrations := .Values.migrations }}
{{- if $migrations.existingFile }}
secret: ""
literals:
  DATABASE_URL_FILE: {{ $migrations.existingFile | quote }}
{{- else if $migrations.passwordKey }}
secret: {{ $migrations.existingSecret | quote }}
literals:
  DATABASE_URL: {{ .Values.database.directUrl | default .Values.database.url | quote }}
keys:
  DATABASE_PASSWORD_FILE: {{ $migrations.passwordKey | quote }}
  {{- with $migrations.usernameKey }}
  DATABASE_USERNAME_FILE: {{ . | quote }}
  {{- end }}
{{- else if $migrations.existingSecret }}
secret: {{ $migrations.existingSecret | quote }}
keys:
  DATABASE_URL_FILE: {{ $migrations.existingSecretKey | quote }}
{{- end }}
{{- end }}

{{/*
The variables of a source. Takes (list $ source). A path contains the names of the Secret and its key, so a "no such file" in
the log says what is missing.
*/}}
{{- define "containerstacks-billing.sourceEnv" -}}
{{- $source := last . }}
{{- range $name, $value := $source.literals }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- range $name, $key := $source.keys }}
- name: {{ $name }}
  value: /etc/containerstacks-billing/secrets/{{ $source.secret }}/{{ $key }}
{{- end }}
{{- with ((first .).Values.database).ca }}
{{- if or .existingSecret .existingConfigMap }}
- name: DATABASE_CA_FILE
  value: /etc/containerstacks-billing/ca/{{ .key | default "ca.crt" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes (list $ source volume-name). */}}
{{- define "containerstacks-billing.sourceMounts" -}}
{{- with (index . 1).secret }}
- name: {{ last $ }}
  mountPath: /etc/containerstacks-billing/secrets/{{ . }}
  readOnly: true
{{- end }}
{{- with ((first .).Values.database).ca }}
{{- if or .existingSecret .existingConfigMap }}
- name: database-ca
  mountPath: /etc/containerstacks-billing/ca
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{/*
A Secret is mounted as a directory, because the kubelet doesn't update subPath mounts after a rotation. It is optional:
without the Secret or its key the pod starts, logs what is missing, and continues once it appears. A required Secret would
leave the pod in ContainerCreating with no log. Takes (list $ source volume-name).
*/}}
{{- define "containerstacks-billing.sourceVolume" -}}
{{- $source := index . 1 }}
{{- with $source.secret }}
- name: {{ last $ }}
  secret:
    secretName: {{ . | quote }}
    optional: true
    defaultMode: 0440
    items:
      {{- range $name, $key := $source.keys }}
      - key: {{ $key | quote }}
        path: {{ $key | quote }}
      {{- end }}
{{- end }}
{{- end }}

{{- define "containerstacks-billing.caVolume" -}}
{{- with .Values.database.ca }}
{{- if .existingSecret }}
- name: database-ca
  secret:
    secretName: {{ .existingSecret | quote }}
    optional: true
    items:
      - key: {{ .key | default "ca.crt" | quote }}
        path: {{ .key | default "ca.crt" | quote }}
{{- else if .existingConfigMap }}
- name: database-ca
  configMap:
    name: {{ .existingConfigMap | quote }}
    optional: true
    items:
      - key: {{ .key | default "ca.crt" | quote }}
        path: {{ .key | default "ca.crt" | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "containerstacks-billing.databaseEnv" -}}
{{- include "containerstacks-billing.sourceEnv" (list . (include "containerstacks-billing.databaseSource" . | fromYaml)) | trim }}
{{- end }}

{{- define "containerstacks-billing.databaseMounts" -}}
{{- include "containerstacks-billing.sourceMounts" (list . (include "containerstacks-billing.databaseSource" . | fromYaml) "database") | trim }}
{{- end }}

{{- define "containerstacks-billing.databaseVolumes" -}}
{{- include "containerstacks-billing.sourceVolume" (list . (include "containerstacks-billing.databaseSource" . | fromYaml) "database") }}
{{- include "containerstacks-billing.caVolume" . }}
{{- end }}

{{/*
The ports of the database, as JSON. A URL in the values names its hosts and ports. The chart can't see a URL in a Secret.
*/}}
{{- define "containerstacks-billing.databasePorts" -}}
{{- $ports := list }}
{{- $urls := ternary (list (include "containerstacks-billing.demoUrl" .)) (compact (list .Values.database.url .Values.database.directUrl)) .Values.demo.enabled }}
{{- range $url := $urls }}
  {{- /* As in libpq, a port among the parameters replaces those beside the hosts, and the last parameter counts. */}}
  {{- with regexFindAll "[?&]port=[^&]*" $url -1 }}
    {{- range last . | replace "%2C" "," | replace "%2c" "," | trimPrefix "?port=" | trimPrefix "&port=" | splitList "," }}
      {{- $ports = append $ports (. | default "5432") }}
    {{- end }}
  {{- else }}
    {{- range regexReplaceAll "^[a-z]+://(?:[^@/?]*@)?([^/?]*).*$" $url "${1}" | splitList "," }}
      {{- $port := regexFind ":[0-9]+$" (regexReplaceAll "\\[[^\\]]*\\]" . "") | trimPrefix ":" }}
      {{- $ports = append $ports ($port | default "5432") }}
    {{- end }}
  {{- end }}
{{- end }}
{{- $policy := .Values.networkPolicy }}
{{- if not $ports }}{{ $ports = $policy.databasePorts | default (list ($policy.databasePort | default 5432)) }}{{ end }}
{{- $numbers := list }}
{{- range $ports }}{{ $numbers = append $numbers (int64 .) }}{{ end }}
{{- $numbers | uniq | toJson }}
{{- end }}

{{/* The container that runs the migrations, for the init container and the Job. */}}
{{- define "containerstacks-billing.migrateContainer" -}}
{{- $source := include "containerstacks-billing.migrationsSource" . | fromYaml }}
- name: migrate
  {{- include "containerstacks-billing.container" . | nindent 2 }}
  {{- /* Waiting here is quicker than the kubelet's back-off, which may add five minutes after the database is back. */}}
  args: [migrate, --wait, "600"]
  env:
    {{- if $source }}
    {{- include "containerstacks-billing.sourceEnv" (list . $source) | trim | nindent 4 }}
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
    {{- if $source }}
    {{- include "containerstacks-billing.sourceMounts" (list . $source "migrations-database") | trim | nindent 4 }}
    {{- else }}
    {{- include "containerstacks-billing.databaseMounts" . | nindent 4 }}
    {{- end }}
    - name: tmp
      mountPath: /tmp
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The volume of the migrations' own Secret, if they have one. */}}
{{- define "containerstacks-billing.migrateVolume" -}}
{{- with include "containerstacks-billing.migrationsSource" . | fromYaml }}
{{- include "containerstacks-billing.sourceVolume" (list $ . "migrations-database") }}
{{- end }}
{{- end }}
