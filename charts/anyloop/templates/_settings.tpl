{{/* The settings of each component: environment variables of anyloop/config.py, trainer/config.py and
trainer/gate/config.py, as one ConfigMap per component. Secrets come by reference (anyloop.secretEnv). */}}

{{- define "anyloop.logUrl" -}}
{{- if .Values.kafka.bundled.enabled -}}
kafka://{{ include "anyloop.name" (dict "root" . "component" "kafka") }}.{{ .Release.Namespace }}.svc:9092
{{- else -}}
kafka://{{ join "," .Values.kafka.external.brokers }}
{{- end -}}
{{- with .Values.kafka.prefix }}/{{ . }}{{ end -}}
{{- end -}}

{{- define "anyloop.mediaUrl" -}}
{{ default "file:///var/lib/anyloop-media" .Values.media.url }}
{{- end -}}

{{- define "anyloop.drainSeconds" -}}
{{ .Values.drain.longestResponseSeconds }}
{{- end -}}

{{/* preStop, the longest response, and what is left to do: outbox, log, the model server's end. */}}
{{- define "anyloop.terminationSeconds" -}}
{{ add .Values.drain.preStopSeconds .Values.drain.longestResponseSeconds .Values.drain.flushSeconds }}
{{- end -}}

{{- define "anyloop.settings" -}}
{{- $root := .root -}}
{{- $c := .component -}}
{{- $values := index $root.Values (include "anyloop.key" .) -}}
{{- $serving := has $c (list "policy" "policy-lab" "critique" "decoders") -}}
{{- $replica := has $c (list "policy" "policy-lab" "critique") -}}
{{- $learns := has $c (list "trainer" "gate") -}}
{{- $s := dict -}}
{{- $_ := set $s "ANYLOOP_HOME" "/var/lib/anyloop" -}}
{{- $_ := set $s "ANYLOOP_BIND" "0.0.0.0" -}}
{{- $_ := set $s "ANYLOOP_METRICS_PORT" "9100" -}}
{{- $_ := set $s "ANYLOOP_LOG_LEVEL" $root.Values.logLevel -}}
{{- $_ := set $s "PYTHONUNBUFFERED" "1" -}}
{{- if include "anyloop.usesRegistry" . -}}{{- $_ := set $s "ANYLOOP_REGISTRY_DIR" "/var/lib/anyloop-registry" -}}{{- end -}}
{{- if include "anyloop.usesMedia" . -}}{{- $_ := set $s "ANYLOOP_MEDIA_URL" (include "anyloop.mediaUrl" $root) -}}{{- end -}}
{{- if include "anyloop.usesObjects" . -}}
{{- with $root.Values.media.s3.endpoint -}}{{- $_ := set $s "AWS_ENDPOINT_URL" . -}}{{- end -}}
{{- with $root.Values.media.s3.region -}}{{- $_ := set $s "AWS_DEFAULT_REGION" . -}}{{- end -}}
{{- end -}}
{{- if ne $c "decoders" -}}
{{- $_ := set $s "ANYLOOP_LOG_URL" (include "anyloop.logUrl" $root) -}}
{{- with $root.Values.kafka.external -}}
{{- if not $root.Values.kafka.bundled.enabled -}}
{{- $_ := set $s "ANYLOOP_KAFKA_SECURITY_PROTOCOL" .securityProtocol -}}
{{- if hasPrefix "SASL" .securityProtocol -}}{{- $_ := set $s "ANYLOOP_KAFKA_SASL_MECHANISM" .saslMechanism -}}{{- end -}}
{{- if and .existingSecret (hasSuffix "SSL" .securityProtocol) -}}
{{- if .caKey -}}{{- $_ := set $s "ANYLOOP_KAFKA_SSL_CAFILE" "/etc/anyloop/kafka/ca.crt" -}}{{- end -}}
{{- if .clientCertificate -}}
{{- $_ := set $s "ANYLOOP_KAFKA_SSL_CERTFILE" "/etc/anyloop/kafka/tls.crt" -}}
{{- $_ := set $s "ANYLOOP_KAFKA_SSL_KEYFILE" "/etc/anyloop/kafka/tls.key" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $root.Values.model.path -}}{{- $_ := set $s "ANYLOOP_MODEL_DIR" $root.Values.model.path -}}{{- end -}}
{{- if $root.Values.tls.enabled -}}
{{- $_ := set $s "ANYLOOP_TLS_CERT" "/etc/anyloop/tls/tls.crt" -}}
{{- $_ := set $s "ANYLOOP_TLS_KEY" "/etc/anyloop/tls/tls.key" -}}
{{- $_ := set $s "ANYLOOP_TLS_CA" "/etc/anyloop/tls/ca.crt" -}}
{{- end -}}
{{- if $root.Values.tracing.endpoint -}}
{{- $_ := set $s "ANYLOOP_OTLP_ENDPOINT" $root.Values.tracing.endpoint -}}
{{- $_ := set $s "ANYLOOP_TRACE_CONTENT" (toString $root.Values.tracing.content) -}}
{{- end -}}
{{- if $serving -}}
{{- $_ := set $s "ANYLOOP_HOST" $root.Values.host -}}
{{- if eq $root.Values.host "triton" -}}{{- $_ := set $s "ANYLOOP_TRITON_URL" "127.0.0.1:8001" -}}{{- end -}}
{{- $_ := set $s "ANYLOOP_HEALTH_PORT" "8086" -}}
{{- $_ := set $s "OMP_NUM_THREADS" (toString (int $values.threads)) -}}
{{- end -}}
{{- if or $serving (eq $c "gateway") -}}
{{- $_ := set $s "ANYLOOP_DRAIN_SECONDS" (include "anyloop.drainSeconds" $root) -}}
{{- $_ := set $s "ANYLOOP_REQUEST_TIMEOUT_S" (toString (int $root.Values.drain.longestResponseSeconds)) -}}
{{- end -}}
{{- if $replica -}}
{{- $port := eq $c "critique" | ternary "CRITIQUE" "POLICY" -}}
{{- $_ := set $s (printf "ANYLOOP_%s_PORT" $port) (eq $c "critique" | ternary "50052" "50051") -}}
{{- $_ := set $s (printf "ANYLOOP_%s_CONTROL_PORT" $port) (eq $c "critique" | ternary "50062" "50061") -}}
{{- $_ := set $s "ANYLOOP_DECODER_TARGET" (include "anyloop.target" (dict "root" $root "component" "decoders" "port" 50053)) -}}
{{- $_ := set $s "ANYLOOP_SWAP_MODE" $root.Values.swapMode -}}
{{- if and $root.Values.tls.enabled (include "anyloop.controlPeers" $root) -}}
{{- $_ := set $s "ANYLOOP_CONTROL_PEERS" (include "anyloop.controlPeers" $root) -}}
{{- end -}}
{{- end -}}
{{- if eq $c "decoders" -}}{{- $_ := set $s "ANYLOOP_DECODER_PORT" "50053" -}}{{- end -}}
{{- if eq $c "gateway" -}}
{{- $_ := set $s "ANYLOOP_GATEWAY_PORT" "8080" -}}
{{- $_ := set $s "ANYLOOP_EDGE_GRPC_PORT" "8081" -}}
{{- $_ := set $s "ANYLOOP_POLICY_TARGET" (include "anyloop.target" (dict "root" $root "component" "policy" "port" 50051)) -}}
{{- $_ := set $s "ANYLOOP_POLICY_CONTROL_TARGET" (include "anyloop.target" (dict "root" $root "component" "policy" "port" 50061)) -}}
{{- $_ := set $s "ANYLOOP_CRITIQUE_CONTROL_TARGET" (include "anyloop.target" (dict "root" $root "component" "critique" "port" 50062)) -}}
{{- $_ := set $s "ANYLOOP_DECODER_TARGET" (include "anyloop.target" (dict "root" $root "component" "decoders" "port" 50053)) -}}
{{- with $root.Values.auth.existingSecret -}}{{- $_ := set $s "ANYLOOP_KEYS_FILE" "/etc/anyloop/keys/keys.toml" -}}{{- end -}}
{{- if $values.edgeTlsSecret -}}
{{- $_ := set $s "ANYLOOP_EDGE_TLS_CERT" "/etc/anyloop/edge-tls/tls.crt" -}}
{{- $_ := set $s "ANYLOOP_EDGE_TLS_KEY" "/etc/anyloop/edge-tls/tls.key" -}}
{{- end -}}
{{- with $values.publicUrl -}}{{- $_ := set $s "ANYLOOP_PUBLIC_URL" . -}}{{- end -}}
{{- end -}}
{{- if $learns -}}
{{- $pool := include "anyloop.pool" $root -}}
{{- $_ := set $s "ANYLOOP_POLICY_TARGET" (include "anyloop.target" (dict "root" $root "component" $pool "port" 50051)) -}}
{{- $_ := set $s "ANYLOOP_POLICY_CONTROL_TARGET" (include "anyloop.target" (dict "root" $root "component" $pool "port" 50061)) -}}
{{- $_ := set $s "ANYLOOP_CRITIQUE_TARGET" (include "anyloop.target" (dict "root" $root "component" "critique" "port" 50052)) -}}
{{- $_ := set $s "ANYLOOP_CRITIQUE_CONTROL_TARGET" (include "anyloop.target" (dict "root" $root "component" "critique" "port" 50062)) -}}
{{- $_ := set $s "ANYLOOP_DECODER_TARGET" (include "anyloop.target" (dict "root" $root "component" "decoders" "port" 50053)) -}}
{{- end -}}
{{- if eq $c "trainer" -}}
{{- $_ := set $s "OMP_NUM_THREADS" (toString (int $values.threads)) -}}
{{- $_ := set $s "ANYLOOP_TRAINER_ALGORITHM" $values.algorithm -}}
{{- end -}}
{{- if eq $c "gate" -}}
{{- with $values.suite -}}{{- $_ := set $s "ANYLOOP_GATE_SUITE" . -}}{{- end -}}
{{- $_ := set $s "ANYLOOP_GATE_PROMOTION" ($root.Values.rollouts.enabled | ternary "rollout" "direct") -}}
{{- end -}}
{{- if eq $c "controller" -}}
{{- $_ := set $s "ANYLOOP_HEALTH_PORT" "8086" -}}
{{- $_ := set $s "ANYLOOP_CONTROLLER_NAMESPACE" $root.Release.Namespace -}}
{{- $_ := set $s "ANYLOOP_CONTROLLER_LEASE_NAME" (include "anyloop.name" .) -}}
{{- $_ := set $s "ANYLOOP_CONTROLLER_LEASE_NAMESPACE" $root.Release.Namespace -}}
{{- $_ := set $s "ANYLOOP_CONTROLLER_POD_SELECTOR" (printf "app.kubernetes.io/name=anyloop,app.kubernetes.io/instance=%s,app.kubernetes.io/component=policy" $root.Release.Name) -}}
{{- $_ := set $s "ANYLOOP_CONTROLLER_ROLLOUT_SELECTOR" (printf "app.kubernetes.io/instance=%s" $root.Release.Name) -}}
{{- with $root.Values.rollouts.prometheus.url -}}{{- $_ := set $s "ANYLOOP_CONTROLLER_PROMETHEUS_URL" . -}}{{- end -}}
{{- if $root.Values.tls.enabled -}}
{{- $_ := set $s "ANYLOOP_TLS_SERVER_NAME" (printf "%s.%s.svc" (include "anyloop.name" (dict "root" $root "component" "policy")) $root.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- if eq $c "bootstrap" -}}
{{- with $root.Values.kafka.topics -}}
{{- $_ := set $s "ANYLOOP_LOG_PARTITIONS" (toString (int .partitions)) -}}
{{- with .replication -}}{{- $_ := set $s "ANYLOOP_LOG_REPLICATION" (toString (int .)) -}}{{- end -}}
{{- with .minInsync -}}{{- $_ := set $s "ANYLOOP_LOG_MIN_INSYNC" (toString (int .)) -}}{{- end -}}
{{- with .retentionDays -}}{{- $_ := set $s "ANYLOOP_LOG_RETENTION_DAYS" (toString .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := $root.Values.settings -}}{{- $_ := set $s $name (toString $value) -}}{{- end -}}
{{- range $name, $value := $values.settings -}}{{- $_ := set $s $name (toString $value) -}}{{- end -}}
{{ toYaml $s }}
{{- end -}}

{{/* Who may change weights on control ports, where each component has a certificate of its own; any other certificate
of the authority may look. */}}
{{- define "anyloop.controlPeers" -}}
{{- if .Values.tls.controlPeers -}}
{{ join "," .Values.tls.controlPeers }}
{{- else if .Values.tls.certManager.enabled -}}
{{- $peers := list -}}
{{- range list "trainer" "gate" "controller" -}}
{{- $peers = append $peers (include "anyloop.name" (dict "root" $ "component" .)) -}}
{{- end -}}
{{ join "," $peers }}
{{- end -}}
{{- end -}}

{{- define "anyloop.secretEnv" -}}
{{- $external := .root.Values.kafka.external -}}
{{- if and (ne .component "decoders") (not .root.Values.kafka.bundled.enabled) (hasPrefix "SASL" $external.securityProtocol) }}
- name: ANYLOOP_KAFKA_SASL_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $external.existingSecret | quote }}, key: {{ $external.usernameKey | quote }}}}
- name: ANYLOOP_KAFKA_SASL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $external.existingSecret | quote }}, key: {{ $external.passwordKey | quote }}}}
{{- end }}
{{- $s3 := .root.Values.media.s3 -}}
{{- if and $s3.existingSecret (include "anyloop.usesObjects" .) }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ $s3.existingSecret | quote }}, key: {{ $s3.accessKeyIdKey | quote }}}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $s3.existingSecret | quote }}, key: {{ $s3.secretAccessKeyKey | quote }}}}
{{- end }}
{{- end -}}
