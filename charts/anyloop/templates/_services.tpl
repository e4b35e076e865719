{{/* Containers of the services: probes, and the model server beside them. */}}

{{/* A service that does not serve yet, or not any more, is not a dead one: `liveness` says that the process answers, and
only readiness asks whether it serves. */}}
{{- define "anyloop.grpcProbes" -}}
startupProbe:
  grpc: {port: 8086, service: liveness}
  periodSeconds: 5
  failureThreshold: {{ int .root.Values.startupAttempts }}
livenessProbe:
  grpc: {port: 8086, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc: {port: 8086}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* Triton in the pod of its service, as a sidecar: it starts before the service and ends after it, so that the last
answers can be finished. Its gRPC and HTTP ports listen on the pod's loopback only. */}}
{{- define "anyloop.triton" -}}
{{- $values := index .root.Values (include "anyloop.key" .) -}}
- name: triton
  image: {{ include "anyloop.image" (dict "root" .root "image" "triton") | quote }}
  {{- include "anyloop.pullPolicy" . | nindent 2 }}
  restartPolicy: Always
  command: [python, -m, services.triton]
  args:
    {{- range .models }}
    - --model={{ . }}
    {{- end }}
    - --address=127.0.0.1
    - --metrics-address=0.0.0.0
    - --log-to-stdout
  envFrom:
    - configMapRef: {name: {{ include "anyloop.name" . }}}
  {{- with $values.triton.extraEnv }}
  env: {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: triton-metrics, containerPort: 8002}
  {{- include "anyloop.containerSecurity" . | nindent 2 }}
  {{- include "anyloop.resources" (dict "resources" $values.triton.resources "gpu" $values.gpu) | nindent 2 }}
  startupProbe:
    httpGet: {path: /metrics, port: triton-metrics}
    periodSeconds: 5
    failureThreshold: {{ int .root.Values.startupAttempts }}
  livenessProbe:
    httpGet: {path: /metrics, port: triton-metrics}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  volumeMounts:
    {{- include "anyloop.mounts" (merge (dict "container" "triton") .) | nindent 4 }}
    # The Python backend moves tensors through shared memory; a container's own has 64 MiB.
    - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{- define "anyloop.tritonVolumes" -}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .root.Values.sharedMemorySize }}}
{{- end -}}

{{/* Of a process that serves nothing but its metrics. */}}
{{- define "anyloop.metricsProbes" -}}
startupProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 5
  failureThreshold: {{ int .root.Values.startupAttempts }}
livenessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}
