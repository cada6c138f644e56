{{- /* Whether jobs may wait in queues of Kueue: text where they may. With "auto", where helm sees Kueue and a ClusterRole is
made anyway. */ -}}
{{- define "visionrl.kueue" -}}
{{- $served := .Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta1" | or (.Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta2") }}
{{- $auto := and (eq (toString .Values.kueue.enabled) "auto") (eq .Values.scope "cluster") $served }}
{{- if or $auto (eq (toString .Values.kueue.enabled) "true") }}true{{ end }}
{{- end -}}

{{- /* Whether jobs may claim GPUs by dynamic resource allocation: text where they may. */ -}}
{{- define "visionrl.resourceClaims" -}}
{{- $auto := and (eq (toString .Values.resourceClaims.enabled) "auto") (.Capabilities.APIVersions.Has "resource.k8s.io/v1") }}
{{- if or $auto (eq (toString .Values.resourceClaims.enabled) "true") }}true{{ end }}
{{- end -}}

{{- /* Of the cluster: what Kueue's flavors and priority classes say. */ -}}
{{- define "visionrl.kueueClusterRules" -}}
- apiGroups: [kueue.x-k8s.io]
  resources: [resourceflavors, workloadpriorityclasses]
  verbs: [get]
{{- end -}}

{{- /* What the operator may do in a namespace whose jobs it looks after: what it does, and no more. */ -}}
{{- define "visionrl.secretRules" -}}
# A job's key, by its name. To list Secrets would be to read all of them.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create]
{{- end -}}
{{- define "visionrl.rules" -}}
- apiGroups: [visionrl.dev]
  resources: [visionrljobs]
  verbs: [get, list, watch, delete] # delete: lifecycle.ttlSecondsAfterFinished
- apiGroups: [visionrl.dev]
  resources: [visionrljobs/status]
  verbs: [patch]
# Where the cluster checks it, only who may update an owner's finalizers makes objects that block its deletion.
- apiGroups: [visionrl.dev]
  resources: [visionrljobs/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete] # delete: pods of a node that is lost
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete] # delete: storage.retention.whenFinished
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: labels that somebody removed
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch]
{{- if include "visionrl.kueue" . }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads/status]
  verbs: [patch]
{{- end }}
{{- if include "visionrl.resourceClaims" . }}
- apiGroups: [resource.k8s.io]
  resources: [resourceclaimtemplates]
  verbs: [get, list, watch, create, patch] # patch: labels that somebody removed
{{- end }}
{{- end -}}
