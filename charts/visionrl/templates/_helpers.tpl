{{- define "visionrl.name" -}}
{{- .Values.nameOverride | default "visionrl-operator" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Release "visionrl" makes visionrl-operator, release "ml" makes ml-visionrl-operator. */ -}}
{{- define "visionrl.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "visionrl.name" . -}}
{{- if has .Release.Name (list "visionrl" $name) -}}
{{- $name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* app.kubernetes.io/name is fixed: the jobs' network policies let pods of this name read the trainers' reports. */ -}}
{{- define "visionrl.selectorLabels" -}}
app.kubernetes.io/name: visionrl-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "visionrl.ownLabels" -}}
{{ include "visionrl.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: visionrl
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* One of ours that extraLabels names, too, stays ours. */ -}}
{{- define "visionrl.labels" -}}
{{- merge (include "visionrl.ownLabels" . | fromYaml) .Values.extraLabels | toYaml -}}
{{- end -}}

{{- define "visionrl.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "visionrl.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "visionrl.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- /* The watched namespaces as a JSON list; empty in cluster scope. */ -}}
{{- define "visionrl.watchNamespaces" -}}
{{- if eq .Values.scope "cluster" -}}
[]
{{- else -}}
{{- .Values.watchNamespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}
{{- end -}}

{{- define "visionrl.subject" -}}
- kind: ServiceAccount
  name: {{ include "visionrl.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{- /* Takes the CEL rules out of a schema, in place. */ -}}
{{- define "visionrl.withoutRules" -}}
{{- if kindIs "map" . -}}
{{- $_ := unset . "x-kubernetes-validations" -}}
{{- range $value := . -}}{{- include "visionrl.withoutRules" $value -}}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- range $value := . -}}{{- include "visionrl.withoutRules" $value -}}{{- end -}}
{{- end -}}
{{- end -}}
