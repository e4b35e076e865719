{{/* What all pods share. Each takes (dict "root" $ "component" "policy"). */}}

{{- define "anyloop.podMetadata" -}}
{{- $values := index .root.Values (include "anyloop.key" .) -}}
labels:
  {{- include "anyloop.labels" . | nindent 2 }}
  {{- if and (eq .root.Values.host "triton") (has .component (list "policy" "policy-lab" "critique" "decoders")) }}
  anyloop.dev/triton: "true"
  {{- end }}
  {{- with $values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A change of the settings starts the pods anew.
  checksum/config: {{ include "anyloop.settings" . | sha256sum }}
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "anyloop.podFields" -}}
{{- $values := index .root.Values (include "anyloop.key" .) -}}
serviceAccountName: {{ include "anyloop.serviceAccount" . }}
automountServiceAccountToken: {{ eq .component "controller" }}
# Kubernetes would set ANYLOOP_POLICY_PORT=tcp://... for a Service named anyloop-policy: not a port number.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int .root.Values.runAs.user }}
  runAsGroup: {{ int .root.Values.runAs.group }}
  fsGroup: {{ int .root.Values.runAs.group }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Copies of one component apart from one another: on nodes and in zones, where there are several. */}}
{{- define "anyloop.spread" -}}
{{- with .root.Values.topologySpread }}
{{- if .enabled }}
topologySpreadConstraints:
  {{- range .keys }}
  - topologyKey: {{ . | quote }}
    maxSkew: 1
    whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{- include "anyloop.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "anyloop.serviceAccount" -}}
{{- if eq .component "controller" -}}{{ include "anyloop.name" . }}{{- else -}}{{ include "anyloop.fullname" .root }}{{- end -}}
{{- end -}}

{{- define "anyloop.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "anyloop.pullPolicy" -}}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
{{- end -}}

{{- define "anyloop.environment" -}}
{{- $values := index .root.Values (include "anyloop.key" .) -}}
envFrom:
  - configMapRef: {name: {{ include "anyloop.name" . }}}
{{- $secrets := include "anyloop.secretEnv" . | trim }}
{{- if or $secrets $values.extraEnv }}
env:
  {{- with $secrets }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Time for load balancers and clients to hear that the pod goes, before it is told to drain. */}}
{{- define "anyloop.preStop" -}}
{{- if .root.Values.drain.preStopSeconds }}
lifecycle:
  preStop:
    sleep: {seconds: {{ int .root.Values.drain.preStopSeconds }}}
{{- end }}
{{- end -}}

{{/* Resources with the accelerator's share. (dict "resources" ... "gpu" ...) */}}
{{- define "anyloop.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .gpu (int .gpu.count) -}}
{{- $_ := set $resources "limits" (merge (dict .gpu.resource (int .gpu.count)) (default dict $resources.limits)) -}}
{{- $_ := set $resources "requests" (merge (dict .gpu.resource (int .gpu.count)) (default dict $resources.requests)) -}}
{{- end -}}
resources: {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{/* Each container gets what it needs: Triton reads weights and no secrets, the gateway and the decoders change none. */}}
{{- define "anyloop.mounts" -}}
{{- $c := .component -}}
{{- $triton := eq (default "" .container) "triton" -}}
- {name: home, mountPath: /var/lib/anyloop}
- {name: tmp, mountPath: /tmp}
{{- if include "anyloop.usesRegistry" . }}
- {name: registry, mountPath: /var/lib/anyloop-registry{{ if or $triton (has $c (list "gateway" "decoders")) }}, readOnly: true{{ end }}}
{{- end }}
{{- if and .root.Values.model.existingClaim (ne $c "controller") }}
- {name: model, mountPath: /var/lib/anyloop-model{{ if ne $c "bootstrap" }}, readOnly: true{{ end }}}
{{- end }}
{{- if not $triton }}
{{- if and (include "anyloop.usesMedia" .) (not .root.Values.media.url) }}
- {name: media, mountPath: /var/lib/anyloop-media}
{{- end }}
{{- if and .root.Values.tls.enabled (ne $c "bootstrap") }}
- {name: tls, mountPath: /etc/anyloop/tls, readOnly: true}
{{- end }}
{{- if include "anyloop.kafkaFiles" . }}
- {name: kafka, mountPath: /etc/anyloop/kafka, readOnly: true}
{{- end }}
{{- if and (eq $c "gateway") .root.Values.auth.existingSecret }}
- {name: keys, mountPath: /etc/anyloop/keys, readOnly: true}
{{- end }}
{{- if and (eq $c "gateway") .root.Values.gateway.edgeTlsSecret }}
- {name: edge-tls, mountPath: /etc/anyloop/edge-tls, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Gateway and decoders read the base model and no checkpoint. */}}
{{- define "anyloop.usesRegistry" -}}
{{- if has .component (list "gateway" "decoders") -}}
{{- if hasPrefix "/var/lib/anyloop-registry" .root.Values.model.path }}yes{{ end -}}
{{- else if ne .component "controller" -}}
yes
{{- end -}}
{{- end -}}

{{/* Who opens the media store; everybody else passes references on. */}}
{{- define "anyloop.usesMedia" -}}
{{- if has .component (list "gateway" "decoders" "gate") }}yes{{ end -}}
{{- end -}}

{{- define "anyloop.usesObjects" -}}
{{- if or (and (include "anyloop.usesMedia" .) .root.Values.media.url) (and (eq .component "bootstrap") .root.Values.model.source) -}}
yes
{{- end -}}
{{- end -}}

{{/* `home` is not among them where a volume claim template makes it. */}}
{{- define "anyloop.volumes" -}}
{{- $c := .component -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .root.Values.scratchSize }}}
{{- if include "anyloop.usesRegistry" . }}
- name: registry
  persistentVolumeClaim: {claimName: {{ include "anyloop.registryClaim" .root | quote }}}
{{- end }}
{{- if and (include "anyloop.usesMedia" .) (not .root.Values.media.url) }}
- name: media
  persistentVolumeClaim: {claimName: {{ include "anyloop.mediaClaim" .root | quote }}}
{{- end }}
{{- if and .root.Values.model.existingClaim (ne $c "controller") }}
- name: model
  persistentVolumeClaim: {claimName: {{ .root.Values.model.existingClaim | quote }}}
{{- end }}
{{- if and .root.Values.tls.enabled (ne $c "bootstrap") }}
- name: tls
  secret: {secretName: {{ include "anyloop.tlsSecret" . | quote }}, defaultMode: 0440}
{{- end }}
{{- if include "anyloop.kafkaFiles" . }}
- name: kafka
  secret:
    secretName: {{ .root.Values.kafka.external.existingSecret | quote }}
    defaultMode: 0440
    items:
      {{- with .root.Values.kafka.external.caKey }}
      - {key: {{ . | quote }}, path: ca.crt}
      {{- end }}
      {{- if .root.Values.kafka.external.clientCertificate }}
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
      {{- end }}
{{- end }}
{{- if and (eq $c "gateway") .root.Values.auth.existingSecret }}
- name: keys
  secret: {secretName: {{ .root.Values.auth.existingSecret | quote }}, defaultMode: 0440}
{{- end }}
{{- if and (eq $c "gateway") .root.Values.gateway.edgeTlsSecret }}
- name: edge-tls
  secret: {secretName: {{ .root.Values.gateway.edgeTlsSecret | quote }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "anyloop.kafkaFiles" -}}
{{- $external := .root.Values.kafka.external -}}
{{- if and (ne .component "decoders") (not .root.Values.kafka.bundled.enabled) $external.existingSecret (hasSuffix "SSL" $external.securityProtocol) (or $external.caKey $external.clientCertificate) -}}
yes
{{- end -}}
{{- end -}}

{{- define "anyloop.registryClaim" -}}
{{ default (printf "%s-registry" (include "anyloop.fullname" .)) .Values.registry.existingClaim }}
{{- end -}}

{{- define "anyloop.mediaClaim" -}}
{{ default (printf "%s-media" (include "anyloop.fullname" .)) .Values.media.existingClaim }}
{{- end -}}

{{- define "anyloop.tlsSecret" -}}
{{- if .root.Values.tls.certManager.enabled -}}
{{ include "anyloop.name" . }}-tls
{{- else -}}
{{ default .root.Values.tls.existingSecret (index .root.Values.tls.existingSecrets (include "anyloop.key" .)) }}
{{- end -}}
{{- end -}}

{{/* The home of a StatefulSet's pod: a claim of its own, which outlives it, or a folder that does not. */}}
{{- define "anyloop.homeVolume" -}}
- name: home
  emptyDir: {sizeLimit: {{ .root.Values.outbox.size }}}
{{- end -}}

{{- define "anyloop.homeClaims" -}}
# An outbox may hold accepted events that the log has not: claims stay when a pod or the release goes.
persistentVolumeClaimRetentionPolicy: {whenDeleted: Retain, whenScaled: Retain}
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: home
      labels: {{- include "anyloop.selector" . | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .root.Values.outbox.storageClassName }}
      storageClassName: {{ . | quote }}
      {{- end }}
      resources: {requests: {storage: {{ .root.Values.outbox.size }}}}
{{- end -}}

{{/* How many: (dict "root" $ "component" "policy" "kind" "StatefulSet"). Where an autoscaler decides, as many as there are:
without a number Kubernetes would make it one, and the autoscaler would find a fleet of one. Of what is not there yet (or
where nobody can be asked, as in `helm template`) nothing. */}}
{{- define "anyloop.replicas" -}}
{{- $values := index .root.Values (include "anyloop.key" .) -}}
{{- $scaling := default dict $values.autoscaling -}}
{{- if eq (default "none" $scaling.kind) "none" -}}
{{ int (default 1 $values.replicas) }}
{{- else -}}
{{- with lookup "apps/v1" .kind .root.Release.Namespace (include "anyloop.name" .) -}}
{{ max (int $scaling.minReplicas) (int .spec.replicas) }}
{{- end -}}
{{- end -}}
{{- end -}}
