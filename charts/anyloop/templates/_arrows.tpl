{{/* Who talks to whom, on which ports: the one table that every NetworkPolicy is made of, and that stands in
docs/kubernetes.md too (a test holds them equal). Everything else is denied.

`from` and `to` are components or, in brackets, what is outside the release: [clients], [monitoring], [kafka], [objects],
[credentials], [prometheus], [collector], [kubernetes]. Name resolution is allowed to everybody. A port range is written "a-b".
The kubelet's probes come from the pod's own node, which network policies always let through. */}}

{{- define "anyloop.arrows" -}}
{{- $pool := include "anyloop.pool" . -}}
{{- $kafka := .Values.kafka.bundled.enabled | ternary "kafka" "[kafka]" -}}
{{- $kafkaPorts := list 9092 -}}
{{- if not .Values.kafka.bundled.enabled -}}
{{- $kafkaPorts = list -}}
{{- range .Values.kafka.external.brokers -}}
{{- $kafkaPorts = append $kafkaPorts (contains ":" . | ternary (last (splitList ":" .) | int) 9092) -}}
{{- end -}}
{{- $kafkaPorts = uniq $kafkaPorts -}}
{{- end -}}
{{- $replicas := .Values.lab.enabled | ternary (list "policy" "policy-lab" "critique") (list "policy" "critique") -}}
{{- $learners := .Values.trainer.enabled | ternary (list "trainer" "gate") (list) -}}
- {from: "[clients]", to: gateway, ports: [8080, 8081]}
- {from: gateway, to: policy, ports: [50051, 50061]}
- {from: gateway, to: critique, ports: [50062]}
- {from: gateway, to: decoders, ports: [50053]}
{{- range $replicas }}
- {from: {{ . }}, to: decoders, ports: [50053]}
{{- end }}
{{- range $learners }}
- {from: {{ . }}, to: {{ $pool }}, ports: [50051, 50061]}
- {from: {{ . }}, to: critique, ports: [50052, 50062]}
- {from: {{ . }}, to: decoders, ports: [50053]}
{{- end }}
{{- if and .Values.trainer.enabled (gt (int .Values.trainer.nodes) 1) }}
- {from: trainer, to: trainer, ports: ["29500-65535"]}
{{- end }}
{{- if .Values.rollouts.enabled }}
- {from: controller, to: policy, ports: [50061, 9100]}
- {from: controller, to: "[kubernetes]", ports: {{ .Values.networkPolicy.kubernetesPorts | toJson }}}
{{- if .Values.rollouts.prometheus.url }}
- {from: controller, to: "[prometheus]", ports: [{{ include "anyloop.urlPort" .Values.rollouts.prometheus.url }}]}
{{- end }}
{{- end }}
{{- range concat (list "gateway") $replicas $learners (.Values.rollouts.enabled | ternary (list "controller") (list)) (.Values.bootstrap.enabled | ternary (list "bootstrap") (list)) }}
- {from: {{ . }}, to: "{{ $kafka }}", ports: {{ $kafkaPorts | toJson }}}
{{- end }}
{{- range $component := (include "anyloop.components" . | fromYamlArray) }}
{{- if include "anyloop.usesObjects" (dict "root" $ "component" $component) }}
- {from: {{ $component }}, to: "[objects]", ports: {{ include "anyloop.objectPorts" $ }}}
{{- if include "anyloop.asksForCredentials" (dict "root" $ "component" $component) }}
- {from: {{ $component }}, to: "[credentials]", ports: [80]}
{{- end }}
{{- end }}
{{- end }}
{{- range $component := (include "anyloop.components" . | fromYamlArray) }}
{{- if not (has $component (list "kafka" "bootstrap")) }}
- {from: "[monitoring]", to: {{ $component }}, ports: [9100{{ if and (eq $.Values.host "triton") (has $component (concat $replicas (list "decoders"))) }}, 8002{{ end }}]}
{{- if $.Values.tracing.endpoint }}
- {from: {{ $component }}, to: "[collector]", ports: [{{ include "anyloop.urlPort" $.Values.tracing.endpoint }}]}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.tests.enabled }}
- {from: test, to: gateway, ports: [8080]}
{{- end }}
{{- end -}}

{{/* The components of this release. */}}
{{- define "anyloop.components" -}}
- gateway
- policy
{{- if .Values.lab.enabled }}
- policy-lab
{{- end }}
- critique
- decoders
{{- if .Values.trainer.enabled }}
- trainer
- gate
{{- end }}
{{- if .Values.rollouts.enabled }}
- controller
{{- end }}
{{- if .Values.kafka.bundled.enabled }}
- kafka
{{- end }}
{{- if .Values.bootstrap.enabled }}
- bootstrap
{{- end }}
{{- end -}}

{{/* The port of a URL: its own, or that of its scheme. */}}
{{- define "anyloop.urlPort" -}}
{{- $own := regexFind ":[0-9]+$" (urlParse .).host -}}
{{- if $own }}{{ trimPrefix ":" $own }}{{ else }}{{ hasPrefix "https" . | ternary 443 80 }}{{ end -}}
{{- end -}}

{{/* Without keys of its own, a client of S3 gets some by what its node or its service account is. */}}
{{- define "anyloop.asksForCredentials" -}}
{{- $url := eq .component "bootstrap" | ternary .root.Values.model.source .root.Values.media.url -}}
{{- if and (hasPrefix "s3://" $url) (not .root.Values.media.s3.existingSecret) -}}
yes
{{- end -}}
{{- end -}}

{{- define "anyloop.objectPorts" -}}
{{- $ports := list -}}
{{- range .Values.networkPolicy.objectStoragePorts }}{{ $ports = append $ports (int .) }}{{ end -}}
{{- with .Values.media.s3.endpoint }}{{ $ports = append $ports (include "anyloop.urlPort" . | int) }}{{ end -}}
{{ uniq $ports | toJson }}
{{- end -}}

{{/* The ports of an arrow as a NetworkPolicy wants them. */}}
{{- define "anyloop.policyPorts" -}}
{{- range . }}
{{- if kindIs "string" . }}
- {port: {{ first (splitList "-" .) | int }}, endPort: {{ last (splitList "-" .) | int }}, protocol: TCP}
{{- else }}
- {port: {{ int . }}, protocol: TCP}
{{- end }}
{{- end }}
{{- end -}}
