{{/* Names, labels and images. Components: gateway, policy, policy-lab, critique, decoders, trainer, gate, controller,
kafka, bootstrap. Their values stand under the same key; those of policy-lab under `lab`. */}}

{{- define "anyloop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* name of a component: (dict "root" $ "component" "policy") */}}
{{- define "anyloop.name" -}}
{{ include "anyloop.fullname" .root }}-{{ .component }}
{{- end -}}

{{- define "anyloop.key" -}}
{{ eq .component "policy-lab" | ternary "lab" .component }}
{{- end -}}

{{/* Never changes for a release: selectors and volume claim templates are immutable. */}}
{{- define "anyloop.selector" -}}
app.kubernetes.io/name: anyloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "anyloop.labels" -}}
{{ include "anyloop.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: anyloop
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The image of one of ours: (dict "root" $ "image" "services"). A digest wins over a tag. */}}
{{- define "anyloop.image" -}}
{{- $image := index .root.Values.images .image -}}
{{- include "anyloop.imageName" (dict "registry" .root.Values.images.registry "image" $image "tag" (default .root.Chart.AppVersion .root.Values.images.tag)) -}}
{{- end -}}

{{- define "anyloop.imageName" -}}
{{- with .registry }}{{ . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .tag .image.tag }}{{ end -}}
{{- end -}}

{{/* Policy, critique and decoders: with their models in Triton beside them, or in the process itself. */}}
{{- define "anyloop.servicesImage" -}}
{{ include "anyloop.image" (dict "root" . "image" (eq .Values.host "inprocess" | ternary "inprocess" "services")) }}
{{- end -}}

{{/* Where one service finds another: all ready pods behind a headless Service, balanced by the client. */}}
{{- define "anyloop.target" -}}
dns:///{{ include "anyloop.name" . }}.{{ .root.Release.Namespace }}.svc:{{ .port }}
{{- end -}}

{{/* The pool that trainer and gate talk to: they ask for versions that only the replica they staged on has. */}}
{{- define "anyloop.pool" -}}
{{ .Values.lab.enabled | ternary "policy-lab" "policy" }}
{{- end -}}
