{{/* A service with weights of its own: policy, policy-lab, critique. (dict "root" $ "component" "policy" "model" "policy"
"port" 50051 "control" 50061) */}}
{{- define "anyloop.replica" -}}
{{- $root := .root -}}
{{- $values := index $root.Values (include "anyloop.key" .) -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "anyloop.name" . }}
  labels: {{- include "anyloop.labels" . | nindent 4 }}
spec:
  # Headless: clients see every ready replica and balance by themselves, so that one that drains is left at once.
  clusterIP: None
  selector: {{- include "anyloop.selector" . | nindent 4 }}
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc}
    - {name: control, port: {{ .control }}, targetPort: control}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ include "anyloop.name" . }}
  labels: {{- include "anyloop.labels" . | nindent 4 }}
spec:
  serviceName: {{ include "anyloop.name" . }}
  {{- with include "anyloop.replicas" (merge (dict "kind" "StatefulSet") .) }}
  replicas: {{ . }}
  {{- end }}
  podManagementPolicy: Parallel
  revisionHistoryLimit: 5
  selector:
    matchLabels: {{- include "anyloop.selector" . | nindent 6 }}
  template:
    metadata: {{- include "anyloop.podMetadata" . | nindent 6 }}
    spec:
      {{- include "anyloop.podFields" . | nindent 6 }}
      {{- include "anyloop.spread" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ include "anyloop.terminationSeconds" $root }}
      {{- if eq $root.Values.host "triton" }}
      initContainers:
        {{- include "anyloop.triton" (merge (dict "models" (list .model)) .) | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .model }}
          image: {{ include "anyloop.servicesImage" $root | quote }}
          {{- include "anyloop.pullPolicy" . | nindent 10 }}
          command: [python, -m, services.{{ .model }}]
          {{- include "anyloop.environment" . | nindent 10 }}
          ports:
            - {name: grpc, containerPort: {{ .port }}}
            - {name: control, containerPort: {{ .control }}}
            - {name: health, containerPort: 8086}
            - {name: metrics, containerPort: 9100}
          {{- include "anyloop.containerSecurity" . | nindent 10 }}
          {{- include "anyloop.resources" (dict "resources" $values.resources "gpu" (eq $root.Values.host "inprocess" | ternary $values.gpu dict)) | nindent 10 }}
          {{- include "anyloop.grpcProbes" . | nindent 10 }}
          {{- include "anyloop.preStop" . | nindent 10 }}
          volumeMounts: {{- include "anyloop.mounts" . | nindent 12 }}
      volumes:
        {{- include "anyloop.volumes" . | nindent 8 }}
        {{- if eq $root.Values.host "triton" }}
        {{- include "anyloop.tritonVolumes" . | nindent 8 }}
        {{- end }}
        {{- if not $root.Values.outbox.persistent }}
        {{- include "anyloop.homeVolume" . | nindent 8 }}
        {{- end }}
  {{- if $root.Values.outbox.persistent }}
  {{- include "anyloop.homeClaims" . | nindent 2 }}
  {{- end }}
{{- end -}}
